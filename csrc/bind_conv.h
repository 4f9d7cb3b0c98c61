// Bindings of convolution, InstanceNorm, ReLU and pooling, in float32 or, through tiles, in bfloat16; and of the form
// of tiles.
#pragma once

#include <string>
#include <type_traits>

#include "amx.h"
#include "bind_arrays.h"
#include "bind_ops.h"
#include "conv_backward.h"
#include "tile_block.h"

namespace fastdm {

inline const char* name_of(TileForm form) {
    return form == TileForm::amx ? "amx" : form == TileForm::plain ? "plain" : "none";
}

inline TileForm form_in_use() {
    const TileForm form = used_tiles();
    require(form != TileForm::none, "This processor has no tiles for bfloat16; use_tiles('plain') computes without.");
    return form;
}

// Calls body with the form of tiles, which bfloat16 needs, or with nothing.
template <class T, class Body>
void with_form(const Body& body) {
    if constexpr (std::is_same_v<T, bfloat16>) {
        body(form_in_use());
    } else {
        body();
    }
}

inline void bind_use_tiles(const std::string& name) {
    const TileForm available = available_tiles();
    const bool known = name == "plain" || name == "none" || name == name_of(available);
    require(known, "The form of tiles is '" + name + "'; it must be plain, none or, where there is AMX, amx.");
    used_tiles() = name == "plain" ? TileForm::plain : name == "none" ? TileForm::none : available;
}

// Weights [out, in, 3, 3] in any memory layout.
using ConvWeight = nb::ndarray<nb::ndim<4>, nb::device::cpu>;

template <class T>
WeightsOf<T> weights_of(const ConvWeight& w) {
    return {static_cast<const T*>(w.data()),
            size_of(w, 0),
            size_of(w, 1),
            w.stride(0),
            w.stride(1),
            w.stride(2),
            w.stride(3)};
}

template <class T>
T* maps_or_null(const Maps4& maps) {
    return maps.is_valid() ? static_cast<T*>(maps.data()) : nullptr;
}

inline ConvShape conv_shape_of(const ConvWeight& weight, int64_t height, int64_t width, int64_t padding) {
    const int64_t out = size_of(weight, 0), in = size_of(weight, 1);
    require_shape("weight", weight, {out, in, 3, 3});
    require(can_convolve(in, out), "A convolution of " + std::to_string(in) + " to " + std::to_string(out) +
                                       " channels is not supported: the number of output channels must be a multiple "
                                       "of 32, that of input channels too or at most 7.");
    const ConvShape s{in, out, {height, width}, padding};
    require(height > 0 && width > 0 && s.out_size().height > 1 && s.out_size().width > 1, "The image is too small.");
    return s;
}

inline void require_padding(int64_t padding) {
    require(0 <= padding && padding <= 1 << 20, "padding is negative or too large.");
}

// Of a block's pooled output or its gradient, of the convolution's result, which may be absent, and of the statistics.
inline void require_block_shapes(const ConvShape& s, int64_t count, const Maps4& pooled, const Maps4& conv_out,
                                 const Array<float, 2>& mean, const Array<float, 2>& rstd) {
    const MapSize conv = s.out_size(), half = conv.pooled();
    require_shape("the pooled array", pooled, {count, half.height, half.width, s.out});
    if (conv_out.is_valid()) require_shape("conv_out", conv_out, {count, conv.height, conv.width, s.out});
    require_shape("mean", mean, {count, s.out});
    require_shape("rstd", rstd, {count, s.out});
}

inline void require_same_dtype(const ConvWeight& weight, const Maps4& one, const Maps4& other) {
    const bool same =
        (!one.is_valid() || one.dtype() == weight.dtype()) && (!other.is_valid() || other.dtype() == weight.dtype());
    if (!same) throw nb::type_error("The arrays must have the same type.");
}

inline void bind_conv_norm_relu_pool(const Maps4& x, const ConvWeight& weight, const Floats& scale, const Floats& shift,
                                     int64_t padding, float eps, const Maps4& out, const Maps4& conv_out,
                                     const Array<float, 2>& mean, const Array<float, 2>& rstd) {
    require_padding(padding);
    const int64_t count = size_of(x, 0), height = size_of(x, 1), width = size_of(x, 2);
    const ConvShape s = conv_shape_of(weight, height, width, padding);
    const Affine affine = affine_of(scale, shift, s.out, eps);
    require_shape("x", x, {count, height, width, s.in});
    require_block_shapes(s, count, out, conv_out, mean, rstd);
    require_same_dtype(weight, x, conv_out);
    with_dtype(x, out, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        with_form<T>([&](auto... form) {
            nb::gil_scoped_release unlocked;
            conv_norm_relu_pool(compute_pool(), static_cast<const T*>(x.data()), count, s, weights_of<T>(weight),
                                affine, static_cast<T*>(out.data()), maps_or_null<T>(conv_out), mean.data(),
                                rstd.data(), form...);
        });
    });
}

inline void bind_conv_norm_relu_pool_backward(const Maps4& grad, const Maps4& x, const Maps4& conv_out,
                                              const Array<float, 2>& mean, const Array<float, 2>& rstd,
                                              const ConvWeight& weight, const Floats& scale, const Floats& shift,
                                              int64_t padding, const Maps4& grad_x, const Array<float, 4>& grad_weight,
                                              const Floats& grad_scale, const Floats& grad_shift) {
    require_padding(padding);
    const int64_t crop = 2 - 2 * padding, count = size_of(conv_out, 0);
    const int64_t height = size_of(conv_out, 1) + crop, width = size_of(conv_out, 2) + crop;
    const ConvShape s = conv_shape_of(weight, height, width, padding);
    const Affine affine = affine_of(scale, shift, s.out, 0.0f);
    require_block_shapes(s, count, grad, conv_out, mean, rstd);
    if (x.is_valid()) require_shape("x", x, {count, height, width, s.in});
    if (grad_x.is_valid()) require_shape("grad_x", grad_x, {count, height, width, s.in});
    if (grad_weight.is_valid()) require_shape("grad_weight", grad_weight, {3, 3, s.in, s.out});
    if (grad_scale.is_valid()) require_shape("grad_scale", grad_scale, {s.out});
    if (grad_shift.is_valid()) require_shape("grad_shift", grad_shift, {s.out});
    require(x.is_valid() || !grad_weight.is_valid(), "grad_weight needs x.");
    require_same_dtype(weight, x, grad_x);
    require_same_dtype(weight, grad, conv_out);
    with_dtype(grad, conv_out, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const BlockResultsOf<T> from{static_cast<const T*>(grad.data()), maps_or_null<const T>(x),
                                     static_cast<const T*>(conv_out.data()), mean.data(), rstd.data()};
        const BlockGradientsOf<T> to{maps_or_null<T>(grad_x), data_or_null(grad_weight), data_or_null(grad_scale),
                                     data_or_null(grad_shift)};
        with_form<T>([&](auto... form) {
            nb::gil_scoped_release unlocked;
            conv_norm_relu_pool_backward(compute_pool(), from, count, s, weights_of<T>(weight), affine, to, form...);
        });
    });
}

inline void register_conv(nb::module_& module) {
    module.def(
        "tiles", [] { return name_of(used_tiles()); },
        "The form of the tiles that convolutions in bfloat16 use: amx, plain, or none if there are none.");
    module.def("use_tiles", bind_use_tiles, "form"_a,
               "Use this form of tiles from now on: plain (slow, for tests), none or, where there is AMX, amx.");
    module.def("can_convolve", &can_convolve, "in_channels"_a, "out_channels"_a,
               "Whether conv_norm_relu_pool supports these numbers of channels.");
    module.def("conv_norm_relu_pool", bind_conv_norm_relu_pool, "x"_a.noconvert(), "weight"_a.noconvert(),
               "scale"_a.noconvert().none(), "shift"_a.noconvert().none(), "padding"_a, "eps"_a, "out"_a.noconvert(),
               "conv_out"_a.noconvert().none(), "mean"_a.noconvert(), "rstd"_a.noconvert(),
               "out = norm_relu_pool of the 3 x 3 convolution of x, all [N, H, W, C].");
    module.def("conv_norm_relu_pool_backward", bind_conv_norm_relu_pool_backward, "grad"_a.noconvert(),
               "x"_a.noconvert().none(), "conv_out"_a.noconvert(), "mean"_a.noconvert(), "rstd"_a.noconvert(),
               "weight"_a.noconvert(), "scale"_a.noconvert().none(), "shift"_a.noconvert().none(), "padding"_a,
               "grad_x"_a.noconvert().none(), "grad_weight"_a.noconvert().none(), "grad_scale"_a.noconvert().none(),
               "grad_shift"_a.noconvert().none(),
               "The gradients of conv_norm_relu_pool; that of weight, [3, 3, in, out], is float32 and needs x.");
}

}  // namespace fastdm
