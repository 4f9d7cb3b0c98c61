// Bindings of the augmentation and the norm; those of a whole block are in bind_conv.h.
#pragma once

#include <nanobind/stl/vector.h>

#include <type_traits>

#include "bind_arrays.h"
#include "dsa.h"
#include "norm_relu_pool.h"
#include "pools.h"

namespace fastdm {

using namespace nb::literals;

// --- augmentation ----------------------------------------------------------------------------------------------------

// Images of 1 or 3 channels, [N, H, W, C] if channels_last, else [N, C, H, W].
inline Maps images_of(const Maps4& x, bool channels_last) {
    const Maps maps = maps_of(x, channels_last);
    require(maps.channels == 1 || maps.channels == 3,
            "The images have " + std::to_string(maps.channels) + " channels; 1 or 3 can be augmented.");
    require(maps.size.pixels() > 0 && maps.size.pixels() < INT32_MAX, "The images are empty or too large.");
    return maps;
}

using Table = Array<const float, 2>;

inline DsaTable dsa_table_of(const Table& table, const Index& group, int64_t count) {
    const int64_t rows = size_of(table, 0);
    require_shape("table", table, {rows, kDsaColumns});
    if (group.is_valid()) {
        require_shape("group", group, {count});
        require_in_range("Row", group, rows);
    } else {
        require(rows == 1 || rows == count, "Without group, table must have 1 row, or one for each image.");
    }
    return {table.data(), rows, data_or_null(group)};
}

inline void bind_dsa(const Maps4& images, const Table& table, const Index& group, const Index& index,
                     const std::vector<float>& scale, const std::vector<float>& shift, bool channels_last,
                     const Maps4& out) {
    const Maps in = images_of(images, false), maps = images_of(out, channels_last);
    require_shape("out", out, shape_of({maps.count, in.channels, in.size, channels_last}, in.size));
    if (index.is_valid()) {
        require_shape("index", index, {maps.count});
        require_in_range("Image", index, in.count);
    } else {
        require(in.count == maps.count, "Without index, out must have as many images as images.");
    }
    const DsaTable rows = dsa_table_of(table, group, maps.count);
    const Normalisation norm = normalisation_of(scale, shift, maps.channels);
    const auto run = [&](const auto* from) {
        with_dtype(out, out, [&](auto* type) {
            using Out = std::remove_pointer_t<decltype(type)>;
            auto* to = static_cast<Out*>(out.data());
            nb::gil_scoped_release unlocked;
            const auto augment = maps.channels == 1 ? dsa<float, std::decay_t<decltype(*from)>, Out>
                                                    : dsa<Rgb, std::decay_t<decltype(*from)>, Out>;
            augment(compute_pool(), from, data_or_null(index), norm, rows, maps, to);
        });
    };
    if (images.dtype() == nb::dtype<uint8_t>()) return run(static_cast<const uint8_t*>(images.data()));
    if (images.dtype() != nb::dtype<float>()) throw nb::type_error("images must be uint8 or float32.");
    run(static_cast<const float*>(images.data()));
}

inline void bind_dsa_backward(const Maps4& grad, const Table& table, const Index& group, bool channels_last,
                              const Array<float, 4>& grad_images) {
    const Maps maps = images_of(grad, channels_last);
    require_shape("grad_images", grad_images, {maps.count, maps.channels, maps.size.height, maps.size.width});
    const DsaTable rows = dsa_table_of(table, group, maps.count);
    with_dtype(grad, grad, [&](auto* type) {
        using In = std::remove_pointer_t<decltype(type)>;
        const auto* from = static_cast<const In*>(grad.data());
        nb::gil_scoped_release unlocked;
        const auto backward = maps.channels == 1 ? dsa_backward<float, In> : dsa_backward<Rgb, In>;
        backward(compute_pool(), from, rows, maps, grad_images.data());
    });
}

inline void register_augmentation(nb::module_& module) {
    module.def("dsa", bind_dsa, "images"_a.noconvert(), "table"_a.noconvert(), "group"_a.noconvert().none(),
               "index"_a.noconvert().none(), "scale"_a, "shift"_a, "channels_last"_a, "out"_a.noconvert(),
               "out = the images of the index, x * scale + shift per channel, augmented by the rows of the table.");
    module.def("dsa_backward", bind_dsa_backward, "grad"_a.noconvert(), "table"_a.noconvert(),
               "group"_a.noconvert().none(), "channels_last"_a, "grad_images"_a.noconvert(),
               "The gradient of dsa with respect to float32 images.");
}

// --- InstanceNorm, ReLU and pooling ----------------------------------------------------------------------------------

inline Affine affine_of(const Floats& weight, const Floats& bias, int64_t channels, float eps) {
    if (weight.is_valid()) require_shape("weight", weight, {channels});
    if (bias.is_valid()) require_shape("bias", bias, {channels});
    return {data_or_null(weight), data_or_null(bias), eps};
}

inline void bind_norm_relu_pool(const Maps4& x, const Floats& weight, const Floats& bias, float eps, bool channels_last,
                                const Maps4& out, const Array<float, 2>& mean, const Array<float, 2>& rstd) {
    const Maps maps = maps_of(x, channels_last);
    const Affine affine = affine_of(weight, bias, maps.channels, eps);
    require_shape("out", out, shape_of(maps, maps.size.pooled()));
    require_shape("mean", mean, {maps.count, maps.channels});
    require_shape("rstd", rstd, {maps.count, maps.channels});
    with_dtype(x, out, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        nb::gil_scoped_release unlocked;
        norm_relu_pool(compute_pool(), static_cast<const T*>(x.data()), maps, affine, static_cast<T*>(out.data()),
                       mean.data(), rstd.data());
    });
}

inline void bind_norm_relu_pool_backward(const Maps4& grad, const Maps4& x, const Array<float, 2>& mean,
                                         const Array<float, 2>& rstd, const Floats& weight, const Floats& bias,
                                         bool channels_last, const Maps4& grad_x, const Floats& grad_weight,
                                         const Floats& grad_bias) {
    const Maps maps = maps_of(x, channels_last);
    const Affine affine = affine_of(weight, bias, maps.channels, 0.0f);
    require_shape("grad", grad, shape_of(maps, maps.size.pooled()));
    require_shape("grad_x", grad_x, shape_of(maps, maps.size));
    require_shape("mean", mean, {maps.count, maps.channels});
    require_shape("rstd", rstd, {maps.count, maps.channels});
    require_shape("grad_weight", grad_weight, {maps.channels});
    require_shape("grad_bias", grad_bias, {maps.channels});
    with_dtype(x, grad, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if (grad_x.dtype() != x.dtype()) throw nb::type_error("grad_x must have the same type as x.");
        nb::gil_scoped_release unlocked;
        norm_relu_pool_backward(compute_pool(), static_cast<const T*>(grad.data()), static_cast<const T*>(x.data()),
                                maps, mean.data(), rstd.data(), affine, static_cast<T*>(grad_x.data()),
                                grad_weight.data(), grad_bias.data());
    });
}

inline void bind_norm_relu_pool_mean(const Maps4& x, const Index& offsets, const Floats& weight, const Floats& bias,
                                     float eps, bool channels_last, const Array<float, 2>& out) {
    const Maps maps = maps_of(x, channels_last);
    const Affine affine = affine_of(weight, bias, maps.channels, eps);
    require(offsets.size() > 0, "offsets is empty.");
    const int64_t classes = size_of(offsets, 0) - 1;
    require_shape("out", out, {classes, maps.channels * maps.size.pooled().pixels()});
    for (int64_t id = 0; id < classes; ++id) {
        const int64_t first = offsets.data()[id], end = offsets.data()[id + 1];
        require(0 <= first && first <= end && end <= maps.count, "offsets must rise from 0 to the number of images.");
    }
    with_dtype(x, x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        nb::gil_scoped_release unlocked;
        norm_relu_pool_mean(compute_pool(), static_cast<const T*>(x.data()), maps, offsets.data(), classes, affine,
                            out.data());
    });
}

inline void register_norm_relu_pool(nb::module_& module) {
    module.def("norm_relu_pool", bind_norm_relu_pool, "x"_a.noconvert(), "weight"_a.noconvert().none(),
               "bias"_a.noconvert().none(), "eps"_a, "channels_last"_a, "out"_a.noconvert(), "mean"_a.noconvert(),
               "rstd"_a.noconvert(),
               "out = InstanceNorm, ReLU and 2 x 2 average pooling of x; mean and rstd of every channel.");
    module.def("norm_relu_pool_backward", bind_norm_relu_pool_backward, "grad"_a.noconvert(), "x"_a.noconvert(),
               "mean"_a.noconvert(), "rstd"_a.noconvert(), "weight"_a.noconvert().none(), "bias"_a.noconvert().none(),
               "channels_last"_a, "grad_x"_a.noconvert(), "grad_weight"_a.noconvert(), "grad_bias"_a.noconvert(),
               "The gradients of norm_relu_pool.");
    module.def("norm_relu_pool_mean", bind_norm_relu_pool_mean, "x"_a.noconvert(), "offsets"_a.noconvert(),
               "weight"_a.noconvert().none(), "bias"_a.noconvert().none(), "eps"_a, "channels_last"_a,
               "out"_a.noconvert(), "The class means of norm_relu_pool's result.");
}

}  // namespace fastdm
