// Bindings of the blocks in bfloat16, overloads of those in bind_ops.h, and of the form of tiles that they use.
#pragma once

#include <string>

#include "amx.h"
#include "bind_arrays.h"
#include "bind_ops.h"
#include "tile_block.h"

template <>
struct nanobind::detail::dtype_traits<fastdm::bfloat16> {
    static constexpr dlpack::dtype value{static_cast<uint8_t>(dlpack::dtype_code::Bfloat), 16, 1};
    static constexpr auto name = const_name("bfloat16");
};

namespace fastdm {

using Halves = Array<bfloat16, 4>;
using ConstHalves = Array<const bfloat16, 4>;
using HalfWeight = nb::ndarray<const bfloat16, nb::ndim<4>, nb::device::cpu>;

inline const char* name_of(TileForm form) {
    return form == TileForm::amx ? "amx" : form == TileForm::plain ? "plain" : "none";
}

inline TileForm form_in_use() {
    const TileForm form = used_tiles();
    require(form != TileForm::none, "This processor has no tiles for bfloat16; use_tiles('plain') computes without.");
    return form;
}

inline void bind_use_tiles(const std::string& name) {
    const TileForm available = available_tiles();
    const bool known = name == "plain" || name == "none" || name == name_of(available);
    require(known, "The form of tiles is '" + name + "'; it must be plain, none or, where there is AMX, amx.");
    used_tiles() = name == "plain" ? TileForm::plain : name == "none" ? TileForm::none : available;
}

inline void bind_conv_norm_relu_pool_bfloat16(const ConstHalves& x, const HalfWeight& weight, const Floats& scale,
                                              const Floats& shift, int64_t padding, float eps, const Halves& out,
                                              const Halves& conv_out, const Array<float, 2>& mean,
                                              const Array<float, 2>& rstd) {
    const ConvShape s = conv_shape_of(weight, size_of(x, 1), size_of(x, 2), padding);
    const Affine affine = affine_of(scale, shift, s.out, eps);
    require_block_shapes(s, size_of(x, 0), out, conv_out, mean, rstd);
    require_shape("x", x, {size_of(x, 0), s.in_size.height, s.in_size.width, s.in});
    const TileForm form = form_in_use();
    nb::gil_scoped_release unlocked;
    conv_norm_relu_pool(compute_pool(), x.data(), size_of(x, 0), s, weights_of(weight), affine, out.data(),
                        data_or_null(conv_out), mean.data(), rstd.data(), form);
}

inline void bind_conv_norm_relu_pool_backward_bfloat16(const ConstHalves& grad, const ConstHalves& x,
                                                       const ConstHalves& conv_out, const Array<const float, 2>& mean,
                                                       const Array<const float, 2>& rstd, const HalfWeight& weight,
                                                       const Floats& scale, const Floats& shift, int64_t padding,
                                                       const Halves& grad_x, const Array<float, 4>& grad_weight,
                                                       const Floats& grad_scale, const Floats& grad_shift) {
    require_padding(padding);
    const int64_t crop = 2 - 2 * padding, count = size_of(conv_out, 0);
    const ConvShape s = conv_shape_of(weight, size_of(conv_out, 1) + crop, size_of(conv_out, 2) + crop, padding);
    const Affine affine = affine_of(scale, shift, s.out, 0.0f);
    require_block_shapes(s, count, grad, conv_out, mean, rstd);
    if (x.is_valid()) require_shape("x", x, {count, s.in_size.height, s.in_size.width, s.in});
    if (grad_x.is_valid()) require_shape("grad_x", grad_x, {count, s.in_size.height, s.in_size.width, s.in});
    if (grad_weight.is_valid()) require_shape("grad_weight", grad_weight, {3, 3, s.in, s.out});
    if (grad_scale.is_valid()) require_shape("grad_scale", grad_scale, {s.out});
    if (grad_shift.is_valid()) require_shape("grad_shift", grad_shift, {s.out});
    require(x.is_valid() || !grad_weight.is_valid(), "grad_weight needs x.");
    const BlockResultsOf<bfloat16> from{grad.data(), data_or_null(x), conv_out.data(), mean.data(), rstd.data()};
    const BlockGradientsOf<bfloat16> to{data_or_null(grad_x), data_or_null(grad_weight), data_or_null(grad_scale),
                                        data_or_null(grad_shift)};
    const TileForm form = form_in_use();
    nb::gil_scoped_release unlocked;
    conv_norm_relu_pool_backward(compute_pool(), from, count, s, weights_of(weight), affine, to, form);
}

inline void register_tiles(nb::module_& module) {
    module.def(
        "tiles", [] { return name_of(used_tiles()); },
        "The form of the tiles that convolutions in bfloat16 use: amx, plain, or none if there are none.");
    module.def("use_tiles", bind_use_tiles, "form"_a,
               "Use this form of tiles from now on: plain (slow, for tests), none or, where there is AMX, amx.");
    module.def("conv_norm_relu_pool", bind_conv_norm_relu_pool_bfloat16, "x"_a.noconvert(), "weight"_a.noconvert(),
               "scale"_a.noconvert().none(), "shift"_a.noconvert().none(), "padding"_a, "eps"_a, "out"_a.noconvert(),
               "conv_out"_a.noconvert().none(), "mean"_a.noconvert(), "rstd"_a.noconvert(),
               "The same in bfloat16, through tiles; mean and rstd are float32.");
    module.def("conv_norm_relu_pool_backward", bind_conv_norm_relu_pool_backward_bfloat16, "grad"_a.noconvert(),
               "x"_a.noconvert().none(), "conv_out"_a.noconvert(), "mean"_a.noconvert(), "rstd"_a.noconvert(),
               "weight"_a.noconvert(), "scale"_a.noconvert().none(), "shift"_a.noconvert().none(), "padding"_a,
               "grad_x"_a.noconvert().none(), "grad_weight"_a.noconvert().none(), "grad_scale"_a.noconvert().none(),
               "grad_shift"_a.noconvert().none(), "The same in bfloat16, through tiles; grad_weight is float32.");
}

}  // namespace fastdm
