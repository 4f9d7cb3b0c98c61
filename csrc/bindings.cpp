// The binding file only binds: it checks what Python hands over, lets go of the GIL and calls the headers, which know
// no Python. Results go into buffers of the caller.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <type_traits>
#include <vector>

#include "conv.h"
#include "draw.h"
#include "dsa.h"
#include "gather.h"
#include "norm_relu_pool.h"
#include "read.h"
#include "resize.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastdm {
namespace {

template <class T, int kDims>
using Array = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Index = Array<const int64_t, 1>;
using Shape = std::vector<int64_t>;

void require(bool holds, const std::string& message) {
    if (!holds) throw nb::value_error(message.c_str());
}

std::string text(const Shape& shape) {
    std::string numbers;
    for (int64_t size : shape) numbers += (numbers.empty() ? "" : ", ") + std::to_string(size);
    return "[" + numbers + "]";
}

template <class A>
void require_shape(const A& out, const Shape& shape) {
    Shape found;
    for (size_t i = 0; i < out.ndim(); ++i) found.push_back(static_cast<int64_t>(out.shape(i)));
    require(found == shape, "out has the shape " + text(found) + " and should have " + text(shape) + ".");
}

void require_in_range(const Index& index, int64_t count, const std::string& what) {
    const int64_t wrong = find_out_of_range(index.data(), static_cast<int64_t>(index.size()), count);
    if (wrong < 0) return;
    require(false, what + " " + std::to_string(index.data()[wrong]) + " at position " + std::to_string(wrong) +
                       " does not exist: there are " + std::to_string(count) + ".");
}

void register_draw(nb::module_& module) {
    module.def(
        "draw",
        [](int64_t seed, uint32_t step, const Index& offsets, const Index& classes, const Array<int64_t, 2>& out,
           bool replace) {
            const int64_t n = static_cast<int64_t>(out.shape(1));
            const int64_t rows = static_cast<int64_t>(classes.size());
            require_shape(out, {rows, n});
            require(offsets.size() > 0, "class_offsets is empty.");
            require_in_range(classes, static_cast<int64_t>(offsets.size()) - 1, "Class");
            for (int64_t row = 0; row < rows; ++row) {
                const int64_t id = classes.data()[row];
                const int64_t first = offsets.data()[id], end = offsets.data()[id + 1];
                require(0 <= first && first <= end, "class_offsets does not rise at class " + std::to_string(id) + ".");
                require(end - first < int64_t{1} << 32, "Class " + std::to_string(id) + " has 2^32 images or more.");
                require((replace ? std::min<int64_t>(n, 1) : n) <= end - first,
                        "Class " + std::to_string(id) + " has " + std::to_string(end - first) + " images: " +
                            std::to_string(n) + " cannot be drawn" + (replace ? "." : " without replace=True."));
            }
            nb::gil_scoped_release unlocked;
            draw(shared_pool(), {static_cast<uint64_t>(seed), step}, offsets.data(), classes.data(), rows, n, replace,
                 out.data());
        },
        "seed"_a, "step"_a, "class_offsets"_a.noconvert(), "classes"_a.noconvert(), "out"_a.noconvert(),
        "replace"_a = false,
        "out[i] = out.shape[1] indices of class classes[i], ascending; distinct unless they are drawn with replace.");
    module.def(
        "uniform",
        [](int64_t seed, uint32_t step, const Index& rows, uint32_t stream, const Array<float, 2>& out) {
            const int64_t n = static_cast<int64_t>(out.shape(1));
            require_shape(out, {static_cast<int64_t>(rows.size()), n});
            require_in_range(rows, int64_t{1} << 32, "Row");
            nb::gil_scoped_release unlocked;
            uniform(shared_pool(), {static_cast<uint64_t>(seed), step}, rows.data(), static_cast<int64_t>(rows.size()), stream, n, out.data());
        },
        "seed"_a, "step"_a, "rows"_a.noconvert(), "stream"_a, "out"_a.noconvert(),
        "out[i] = numbers in [0, 1) keyed by (seed, step, rows[i], stream).");
}

Layout layout_of(const std::string& name) {
    if (name == "planar") return Layout::planar;
    if (name == "last") return Layout::last;
    require(name == "rgbx", "The layout '" + name + "' is none of planar, last, rgbx.");
    return Layout::rgbx;
}

Normalisation normalisation_of(const std::vector<float>& scale, const std::vector<float>& shift, int64_t channels) {
    require(static_cast<int64_t>(scale.size()) == channels && static_cast<int64_t>(shift.size()) == channels,
            "scale and shift must have one number for each of the " + std::to_string(channels) + " channels.");
    Normalisation norm{};
    std::copy(scale.begin(), scale.end(), norm.scale);
    std::copy(shift.begin(), shift.end(), norm.shift);
    return norm;
}

void register_gather(nb::module_& module) {
    module.def(
        "gather",
        [](const Array<const uint8_t, 4>& images, const Index& index,
           const nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>& out, const std::string& layout_name,
           const std::vector<float>& scale, const std::vector<float>& shift, int threads) {
            const int64_t n = static_cast<int64_t>(index.size()), channels = static_cast<int64_t>(images.shape(1));
            const int64_t height = static_cast<int64_t>(images.shape(2)), width = static_cast<int64_t>(images.shape(3));
            const Layout layout = layout_of(layout_name);
            require(channels == 1 || channels == 3,
                    "The images have " + std::to_string(channels) + " channels; 1 or 3 can be gathered.");
            require(layout != Layout::rgbx || channels == 3, "The layout rgbx needs 3 channels.");
            require_shape(out, layout == Layout::planar ? Shape{n, channels, height, width}
                                                        : Shape{n, height, width, layout == Layout::rgbx ? 4 : channels});
            const Records records{images.data(), static_cast<int64_t>(images.shape(0)), channels, height * width};
            require_in_range(index, records.count, "Image");
            ThreadPool& pool = shared_pool();
            const int64_t* rows = index.data();
            if (out.dtype() == nb::dtype<uint8_t>()) {
                auto* numbers = static_cast<uint8_t*>(out.data());
                nb::gil_scoped_release unlocked;
                if (layout == Layout::planar) return gather(pool, records, rows, n, numbers, threads);
                return gather_convert(pool, records, {}, layout, rows, n, numbers, threads);
            }
            const Normalisation norm = normalisation_of(scale, shift, channels);
            if (out.dtype() == nb::dtype<float>()) {
                nb::gil_scoped_release unlocked;
                return gather_convert(pool, records, norm, layout, rows, n, static_cast<float*>(out.data()), threads);
            }
            const nb::dlpack::dtype bf16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
            if (out.dtype() != bf16) throw nb::type_error("out must hold uint8, float32 or bfloat16.");
            nb::gil_scoped_release unlocked;
            gather_convert(pool, records, norm, layout, rows, n, static_cast<bfloat16*>(out.data()), threads);
        },
        "images"_a.noconvert(), "index"_a.noconvert(), "out"_a.noconvert(), "layout"_a = "planar",
        "scale"_a = std::vector<float>{}, "shift"_a = std::vector<float>{}, "threads"_a = 0,
        "out[i] = images[index[i]]: uint8 as it is, float32 and bfloat16 as x * scale + shift per channel.");
    module.def("threads", [] { return shared_pool().threads(); }, "How many threads the core works with.");
}

void register_resize(nb::module_& module) {
    module.def(
        "resize_box",
        [](const Array<const uint8_t, 3>& pixels, int64_t top, int64_t left, int64_t height, int64_t width,
           bool shorten_first, const Array<uint8_t, 3>& out) {
            const int64_t rows = static_cast<int64_t>(pixels.shape(0)), columns = static_cast<int64_t>(pixels.shape(1));
            const int64_t channels = static_cast<int64_t>(pixels.shape(2)), size = static_cast<int64_t>(out.shape(2));
            require(channels == 1 || channels == 3, "pixels must have 1 or 3 channels.");
            require(size > 0, "out is empty.");
            require_shape(out, {channels, size, size});
            require(0 <= top && 0 <= left && 0 < height && 0 < width && height <= rows - top && width <= columns - left,
                    "The window does not lie in the image.");
            const uint8_t* corner = pixels.data() + (top * columns + left) * channels;
            nb::gil_scoped_release unlocked;
            (channels == 1 ? resize_box<1> : resize_box<3>)(corner, columns * channels, height, width, size,
                                                            shorten_first, out.data());
        },
        "pixels"_a.noconvert(), "top"_a, "left"_a, "height"_a, "width"_a, "shorten_first"_a,
        "out"_a.noconvert(), "A window of an image [H, W, C] resized to out [C, size, size], as Pillow's Image.BOX does it.");
}

void register_read(nb::module_& module) {
    nb::exception<ReadError>(module, "ReadError", PyExc_OSError);
    nb::class_<RecordFile>(module, "RecordFile", "A file whose records are read past the page cache.")
        .def(nb::init<std::string>(), "path"_a)
        .def_prop_ro("direct", &RecordFile::direct)
        .def(
            "read",
            [](RecordFile& file, int64_t first, const Index& index, const Array<uint8_t, 4>& out) {
                const int64_t n = static_cast<int64_t>(index.size());
                require(out.shape(0) == index.size(), "out has room for " + std::to_string(out.shape(0)) +
                                                          " records and should have it for " + std::to_string(n) + ".");
                const int64_t bytes = n == 0 ? 0 : static_cast<int64_t>(out.size()) / n;
                require(0 <= first, "first is negative.");
                require_in_range(index, bytes == 0 ? INT64_MAX : (INT64_MAX - first) / bytes - 1, "Record");
                nb::gil_scoped_release unlocked;
                file.read(first, bytes, index.data(), n, out.data());
            },
            "first"_a, "index"_a.noconvert(), "out"_a.noconvert(),
            "out[i] = record index[i] of those that begin at byte first.");
}

using Floats = Array<float, 1>;
using Activations = nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>;

// [N, H, W, C] if channels_last, else [N, C, H, W].
Maps maps_of(const Activations& x, bool channels_last) {
    const auto size = [&](size_t axis) { return static_cast<int64_t>(x.shape(axis)); };
    if (channels_last) return {size(0), size(3), {size(1), size(2)}, true};
    return {size(0), size(1), {size(2), size(3)}, false};
}

Shape pooled_shape(const Maps& maps) {
    const MapSize size = maps.size.pooled();
    if (maps.channels_last) return {maps.count, size.height, size.width, maps.channels};
    return {maps.count, maps.channels, size.height, size.width};
}

Affine affine_of(const Floats& weight, const Floats& bias, int64_t channels, float eps) {
    if (weight.is_valid()) require_shape(weight, {channels});
    if (bias.is_valid()) require_shape(bias, {channels});
    return {weight.is_valid() ? weight.data() : nullptr, bias.is_valid() ? bias.data() : nullptr, eps};
}

// Calls body with a null pointer of the arrays' number type.
template <class Body>
void with_number_type(const Activations& x, const Activations& other, const Body& body) {
    const nb::dlpack::dtype bf16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
    if (x.dtype() != other.dtype()) throw nb::type_error("The arrays must hold the same type of numbers.");
    if (x.dtype() == nb::dtype<float>()) return body(static_cast<float*>(nullptr));
    if (x.dtype() == bf16) return body(static_cast<bfloat16*>(nullptr));
    throw nb::type_error("The arrays must hold float32 or bfloat16.");
}

// Of images with 1 or 3 channels, [N, H, W, C] if channels_last, else [N, C, H, W].
Maps images_of(const Activations& x, bool channels_last) {
    const Maps maps = maps_of(x, channels_last);
    require(maps.channels == 1 || maps.channels == 3,
            "The images have " + std::to_string(maps.channels) + " channels; 1 or 3 can be augmented.");
    require(maps.size.pixels() > 0 && maps.size.pixels() < INT32_MAX, "The images are empty or too large.");
    return maps;
}

using Table = Array<const float, 2>;

DsaTable dsa_table_of(const Table& table, const Index& group, int64_t count) {
    const int64_t rows = static_cast<int64_t>(table.shape(0));
    require_shape(table, {rows, kDsaColumns});
    if (group.is_valid()) {
        require_shape(group, {count});
        require_in_range(group, rows, "Row");
    } else {
        require(rows == 1 || rows == count, "Without group, table must have 1 row, or one for each image.");
    }
    return {table.data(), rows, group.is_valid() ? group.data() : nullptr};
}

void register_dsa(nb::module_& module) {
    module.def(
        "dsa",
        [](const Activations& images, const Table& table, const Index& group, const Index& index,
           const std::vector<float>& scale, const std::vector<float>& shift, bool channels_last,
           const Activations& out) {
            const Maps in = images_of(images, false), maps = images_of(out, channels_last);
            require(in.channels == maps.channels && in.size.height == maps.size.height &&
                        in.size.width == maps.size.width,
                    "out must hold images of the same shape.");
            if (index.is_valid()) {
                require_shape(index, {maps.count});
                require_in_range(index, in.count, "Image");
            } else {
                require(in.count == maps.count, "Without index, out must have room for every image.");
            }
            const DsaTable rows = dsa_table_of(table, group, maps.count);
            const Normalisation norm = normalisation_of(scale, shift, maps.channels);
            const auto run = [&](const auto* from) {
                with_number_type(out, out, [&](auto* type) {
                    using Out = std::remove_pointer_t<decltype(type)>;
                    nb::gil_scoped_release unlocked;
                    const int64_t* which = index.is_valid() ? index.data() : nullptr;
                    Out* to = static_cast<Out*>(out.data());
                    if (maps.channels == 1) return dsa<float>(shared_pool(), from, which, norm, rows, maps, to);
                    dsa<Rgb>(shared_pool(), from, which, norm, rows, maps, to);
                });
            };
            if (images.dtype() == nb::dtype<uint8_t>()) return run(static_cast<const uint8_t*>(images.data()));
            if (images.dtype() != nb::dtype<float>()) throw nb::type_error("images must hold uint8 or float32.");
            run(static_cast<const float*>(images.data()));
        },
        "images"_a.noconvert(), "table"_a.noconvert(), "group"_a.noconvert().none(), "index"_a.noconvert().none(),
        "scale"_a, "shift"_a, "channels_last"_a, "out"_a.noconvert(),
        "out = the images of the index, x * scale + shift per channel, augmented by the rows of the table.");
    module.def(
        "dsa_backward",
        [](const Activations& grad, const Table& table, const Index& group, bool channels_last,
           const Array<float, 4>& grad_images) {
            const Maps maps = images_of(grad, channels_last);
            require_shape(grad_images, {maps.count, maps.channels, maps.size.height, maps.size.width});
            const DsaTable rows = dsa_table_of(table, group, maps.count);
            with_number_type(grad, grad, [&](auto* type) {
                const auto* from = static_cast<decltype(type)>(grad.data());
                nb::gil_scoped_release unlocked;
                if (maps.channels == 1) return dsa_backward<float>(shared_pool(), from, rows, maps, grad_images.data());
                dsa_backward<Rgb>(shared_pool(), from, rows, maps, grad_images.data());
            });
        },
        "grad"_a.noconvert(), "table"_a.noconvert(), "group"_a.noconvert().none(), "channels_last"_a,
        "grad_images"_a.noconvert(), "The gradient of dsa with respect to float32 images.");
}

void register_norm_relu_pool(nb::module_& module) {
    module.def(
        "norm_relu_pool",
        [](const Activations& x, const Floats& weight, const Floats& bias, float eps, bool channels_last,
           const Activations& out, const Array<float, 2>& mean, const Array<float, 2>& rstd) {
            const Maps maps = maps_of(x, channels_last);
            const Affine affine = affine_of(weight, bias, maps.channels, eps);
            require_shape(out, pooled_shape(maps));
            require_shape(mean, {maps.count, maps.channels});
            require_shape(rstd, {maps.count, maps.channels});
            with_number_type(x, out, [&](auto* type) {
                using T = std::remove_pointer_t<decltype(type)>;
                nb::gil_scoped_release unlocked;
                norm_relu_pool(shared_pool(), static_cast<const T*>(x.data()), maps, affine,
                               static_cast<T*>(out.data()), mean.data(), rstd.data());
            });
        },
        "x"_a.noconvert(), "weight"_a.noconvert().none(), "bias"_a.noconvert().none(), "eps"_a, "channels_last"_a,
        "out"_a.noconvert(), "mean"_a.noconvert(), "rstd"_a.noconvert(),
        "out = InstanceNorm, ReLU and 2 x 2 average pooling of x; mean and rstd of every channel.");
    module.def(
        "norm_relu_pool_backward",
        [](const Activations& grad, const Activations& x, const Array<float, 2>& mean, const Array<float, 2>& rstd,
           const Floats& weight, const Floats& bias, bool channels_last, const Activations& grad_x,
           const Floats& grad_weight, const Floats& grad_bias) {
            const Maps maps = maps_of(x, channels_last);
            const Affine affine = affine_of(weight, bias, maps.channels, 0.0f);
            require_shape(grad, pooled_shape(maps));
            require(maps_of(grad_x, channels_last).numbers() == maps.numbers() && grad_x.size() == x.size(),
                    "grad_x and x must have the same shape.");
            require_shape(mean, {maps.count, maps.channels});
            require_shape(rstd, {maps.count, maps.channels});
            require_shape(grad_weight, {maps.channels});
            require_shape(grad_bias, {maps.channels});
            with_number_type(x, grad, [&](auto* type) {
                using T = std::remove_pointer_t<decltype(type)>;
                if (grad_x.dtype() != x.dtype()) throw nb::type_error("grad_x must hold the same type as x.");
                nb::gil_scoped_release unlocked;
                norm_relu_pool_backward(shared_pool(), static_cast<const T*>(grad.data()),
                                        static_cast<const T*>(x.data()), maps, mean.data(), rstd.data(), affine,
                                        static_cast<T*>(grad_x.data()), grad_weight.data(), grad_bias.data());
            });
        },
        "grad"_a.noconvert(), "x"_a.noconvert(), "mean"_a.noconvert(), "rstd"_a.noconvert(),
        "weight"_a.noconvert().none(), "bias"_a.noconvert().none(), "channels_last"_a, "grad_x"_a.noconvert(),
        "grad_weight"_a.noconvert(), "grad_bias"_a.noconvert(), "The gradients of norm_relu_pool.");
    module.def(
        "norm_relu_pool_mean",
        [](const Activations& x, const Index& offsets, const Floats& weight, const Floats& bias, float eps,
           bool channels_last, const Array<float, 2>& out) {
            const Maps maps = maps_of(x, channels_last);
            const Affine affine = affine_of(weight, bias, maps.channels, eps);
            require(offsets.size() > 0, "offsets is empty.");
            const int64_t classes = static_cast<int64_t>(offsets.size()) - 1;
            require_shape(out, {classes, maps.channels * maps.size.pooled().pixels()});
            for (int64_t id = 0; id < classes; ++id) {
                require(0 <= offsets.data()[id] && offsets.data()[id] <= offsets.data()[id + 1] &&
                            offsets.data()[id + 1] <= maps.count,
                        "offsets must rise from 0 to the number of images.");
            }
            with_number_type(x, x, [&](auto* type) {
                using T = std::remove_pointer_t<decltype(type)>;
                nb::gil_scoped_release unlocked;
                norm_relu_pool_mean(shared_pool(), static_cast<const T*>(x.data()), maps, offsets.data(), classes,
                                    affine, out.data());
            });
        },
        "x"_a.noconvert(), "offsets"_a.noconvert(), "weight"_a.noconvert().none(), "bias"_a.noconvert().none(),
        "eps"_a, "channels_last"_a, "out"_a.noconvert(), "The class means of norm_relu_pool's result.");
}

using ConvWeight = nb::ndarray<const float, nb::ndim<4>, nb::device::cpu>;

Weights weights_of(const ConvWeight& weight) {
    return {weight.data(),    static_cast<int64_t>(weight.shape(0)), static_cast<int64_t>(weight.shape(1)),
            weight.stride(0), weight.stride(1),                      weight.stride(2),
            weight.stride(3)};
}

ConvShape conv_shape_of(const ConvWeight& weight, int64_t height, int64_t width, int64_t padding) {
    const int64_t out = static_cast<int64_t>(weight.shape(0)), in = static_cast<int64_t>(weight.shape(1));
    require_shape(weight, {out, in, 3, 3});
    require(can_convolve(in, out), "A convolution of " + std::to_string(in) + " to " + std::to_string(out) +
                                       " channels is not done here: the output must have a multiple of 32, the input "
                                       "as well or at most 7.");
    const ConvShape s{in, out, {height, width}, padding};
    require(0 <= padding && padding <= 1 << 20, "The padding is negative or too large.");
    require(height > 0 && width > 0 && s.out_size().height > 1 && s.out_size().width > 1, "The image is too small.");
    return s;
}

void register_conv(nb::module_& module) {
    module.def("can_convolve", &can_convolve, "in_channels"_a, "out_channels"_a,
               "Whether conv_norm_relu_pool takes this many channels.");
    module.def(
        "conv_norm_relu_pool",
        [](const Array<const float, 4>& x, const ConvWeight& weight, int64_t padding, float eps,
           const Array<float, 4>& out, const Array<float, 4>& conv_out, const Array<float, 2>& mean,
           const Array<float, 2>& rstd) {
            const auto size = [&](size_t axis) { return static_cast<int64_t>(x.shape(axis)); };
            const ConvShape s = conv_shape_of(weight, size(1), size(2), padding);
            const MapSize conv = s.out_size(), pooled = conv.pooled();
            require_shape(x, {size(0), size(1), size(2), s.in});
            require_shape(out, {size(0), pooled.height, pooled.width, s.out});
            if (conv_out.is_valid()) require_shape(conv_out, {size(0), conv.height, conv.width, s.out});
            require_shape(mean, {size(0), s.out});
            require_shape(rstd, {size(0), s.out});
            nb::gil_scoped_release unlocked;
            conv_norm_relu_pool(shared_pool(), x.data(), size(0), s, weights_of(weight), eps, out.data(),
                                conv_out.is_valid() ? conv_out.data() : nullptr, mean.data(), rstd.data());
        },
        "x"_a.noconvert(), "weight"_a.noconvert(), "padding"_a, "eps"_a, "out"_a.noconvert(),
        "conv_out"_a.noconvert().none(), "mean"_a.noconvert(), "rstd"_a.noconvert(),
        "out = norm_relu_pool of the 3 x 3 convolution of x, all [N, H, W, C].");
    module.def(
        "conv_norm_relu_pool_backward",
        [](const Array<const float, 4>& grad, const Array<const float, 4>& conv_out, const Array<const float, 2>& mean,
           const Array<const float, 2>& rstd, const ConvWeight& weight, int64_t padding,
           const Array<float, 4>& grad_x) {
            const auto size = [&](size_t axis) { return static_cast<int64_t>(grad_x.shape(axis)); };
            const ConvShape s = conv_shape_of(weight, size(1), size(2), padding);
            const MapSize conv = s.out_size(), pooled = conv.pooled();
            require_shape(grad_x, {size(0), size(1), size(2), s.in});
            require_shape(grad, {size(0), pooled.height, pooled.width, s.out});
            require_shape(conv_out, {size(0), conv.height, conv.width, s.out});
            require_shape(mean, {size(0), s.out});
            require_shape(rstd, {size(0), s.out});
            nb::gil_scoped_release unlocked;
            conv_norm_relu_pool_backward(shared_pool(), grad.data(), conv_out.data(), mean.data(), rstd.data(), size(0),
                                         s, weights_of(weight), grad_x.data());
        },
        "grad"_a.noconvert(), "conv_out"_a.noconvert(), "mean"_a.noconvert(), "rstd"_a.noconvert(),
        "weight"_a.noconvert(), "padding"_a, "grad_x"_a.noconvert(),
        "The gradient of conv_norm_relu_pool with respect to x.");
}

}  // namespace
}  // namespace fastdm

NB_MODULE(_native, module) {
    module.doc() = "fastdm's C++ core.";
    fastdm::register_draw(module);
    fastdm::register_gather(module);
    fastdm::register_resize(module);
    fastdm::register_read(module);
    fastdm::register_dsa(module);
    fastdm::register_norm_relu_pool(module);
    fastdm::register_conv(module);
}
