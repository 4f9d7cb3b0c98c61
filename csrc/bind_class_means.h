// Bindings of the loss of distribution matching.
#pragma once

#include "bind_arrays.h"
#include "class_means.h"
#include "pools.h"

namespace fastdm {

using namespace nb::literals;

// Features [N, D] of a dtype that is checked when they are used.
using Features = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Calls body with the data of features.
template <class Body>
void with_data(const Features& features, const Body& body) {
    if (features.dtype() == nb::dtype<float>()) return body(static_cast<float*>(features.data()));
    if (features.dtype() == kBfloat16) return body(static_cast<bfloat16*>(features.data()));
    throw nb::type_error("The features must be float32 or bfloat16.");
}

inline void require_offsets(const std::string& name, const Index& offsets, int64_t classes, int64_t rows) {
    require_shape(name, offsets, {classes + 1});
    const int64_t *first = offsets.data(), *last = first + classes;
    require(*first == 0 && *last == rows && std::is_sorted(first, last + 1),
            name + " must rise from 0 to " + std::to_string(rows) + ".");
}

inline void bind_class_means(const Features& features, const Index& offsets, const Array<float, 2>& means) {
    const int64_t classes = size_of(means, 0), width = size_of(means, 1);
    require_shape("features", features, {size_of(features, 0), width});
    require_offsets("offsets", offsets, classes, size_of(features, 0));
    with_data(features, [&](const auto* from) {
        nb::gil_scoped_release unlocked;
        class_means<std::decay_t<decltype(*from)>>(compute_pool(), {from, offsets.data()}, classes, width,
                                                   means.data());
    });
}

inline void bind_class_mean_difference(const Features& real, const Features& synthetic, const Index& real_offsets,
                                       const Index& synthetic_offsets, const Array<float, 2>& difference) {
    const int64_t classes = size_of(difference, 0), width = size_of(difference, 1);
    const int64_t rows = size_of(real, 0);
    require_shape("real", real, {real_offsets.is_valid() ? rows : classes, width});
    require_shape("synthetic", synthetic, {size_of(synthetic, 0), width});
    if (real_offsets.is_valid()) require_offsets("real_offsets", real_offsets, classes, rows);
    require_offsets("synthetic_offsets", synthetic_offsets, classes, size_of(synthetic, 0));
    with_data(real, [&](const auto* from) {
        with_data(synthetic, [&](const auto* other) {
            nb::gil_scoped_release unlocked;
            class_mean_difference<std::decay_t<decltype(*from)>, std::decay_t<decltype(*other)>>(
                compute_pool(), {from, data_or_null(real_offsets)}, {other, synthetic_offsets.data()}, classes, width,
                difference.data());
        });
    });
}

inline void bind_class_mean_difference_backward(float grad, const Array<const float, 2>& difference,
                                                const Index& synthetic_offsets, const Features& out) {
    const int64_t classes = size_of(difference, 0), width = size_of(difference, 1);
    require_shape("out", out, {size_of(out, 0), width});
    require_offsets("synthetic_offsets", synthetic_offsets, classes, size_of(out, 0));
    with_data(out, [&](auto* to) {
        nb::gil_scoped_release unlocked;
        class_mean_difference_backward(compute_pool(), grad, difference.data(), synthetic_offsets.data(), classes,
                                       width, to);
    });
}

inline void register_class_means(nb::module_& module) {
    module.def("class_means", bind_class_means, "features"_a.noconvert(), "offsets"_a.noconvert(),
               "means"_a.noconvert(), "means = the class means of features [rows, features].");
    module.def("class_mean_difference", bind_class_mean_difference, "real"_a.noconvert(), "synthetic"_a.noconvert(),
               "real_offsets"_a.noconvert().none(), "synthetic_offsets"_a.noconvert(), "difference"_a.noconvert(),
               "difference = the class means of real minus those of synthetic, both [rows, features].");
    module.def("class_mean_difference_backward", bind_class_mean_difference_backward, "grad"_a,
               "difference"_a.noconvert(), "synthetic_offsets"_a.noconvert(), "out"_a.noconvert(),
               "out = the gradient of grad times the sum of the squared difference with respect to synthetic.");
}

}  // namespace fastdm
