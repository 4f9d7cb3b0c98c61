// The Python module. Bindings only bind: they check what Python passes, release the GIL and call the headers, which
// know no Python. Results go into the caller's buffers.
#include "bind_class_means.h"
#include "bind_conv.h"
#include "bind_data.h"
#include "bind_ops.h"

NB_MODULE(_native, module) {
    module.doc() = "fastdm's C++ core.";
    fastdm::register_data(module);
    fastdm::register_augmentation(module);
    fastdm::register_norm_relu_pool(module);
    fastdm::register_conv(module);
    fastdm::register_class_means(module);
}
