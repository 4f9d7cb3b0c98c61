// Bindings of what prepares data: random draws, gathering, resizing, reading records.
#pragma once

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind_arrays.h"
#include "draw.h"
#include "gather.h"
#include "pools.h"
#include "record_file.h"
#include "resize.h"

namespace fastdm {

using namespace nb::literals;

// Checks the values too, so that draws of a few microseconds need no further look at them; with the sentences of
// fastdm.kernels.draw.
inline void bind_draw(int64_t seed, uint32_t step, const Index& offsets, const Index& classes,
                      const Array<int64_t, 2>& out, bool replace) {
    const int64_t n = size_of(out, 1), rows = size_of(classes, 0);
    require_shape("out", out, {rows, n});
    require(offsets.size() > 0, "class_offsets is empty.");
    const int64_t *ids = classes.data(), count = size_of(offsets, 0) - 1;
    if (find_out_of_range(ids, rows, count) >= 0) {
        const auto [least, most] = std::minmax_element(ids, ids + rows);
        require(false, "classes holds " + std::to_string(*least) + " to " + std::to_string(*most) +
                           "; it must stay within 0 to " + std::to_string(count - 1));
    }
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t id = ids[row], first = offsets.data()[id], next = offsets.data()[id + 1];
        const bool rises = 0 <= first && first <= next;  // else the difference may overflow
        const int64_t size = rises ? next - first : 0;
        if (rises && (replace ? std::min<int64_t>(n, 1) : n) <= size && size < int64_t{1} << 32) continue;
        const std::string name = "class " + std::to_string(id);
        require(rises, "class_offsets does not rise at " + name);
        require(size < int64_t{1} << 32, name + " has 2^32 images or more");
        require(false, name + " has " + std::to_string(size) + " images, but " + std::to_string(n) +
                           " are to be drawn: " +
                           (size > 0 ? "draw fewer, or with replace=True" : "there is nothing to draw from"));
    }
    nb::gil_scoped_release unlocked;
    draw(compute_pool(), {static_cast<uint64_t>(seed), step}, offsets.data(), ids, rows, n, replace, out.data());
}

inline void bind_uniform(int64_t seed, uint32_t step, const Index& rows, uint32_t stream, const Array<float, 2>& out) {
    const int64_t n = size_of(out, 1), count = size_of(rows, 0);
    require_shape("out", out, {count, n});
    require_in_range("Row", rows, int64_t{1} << 32);
    nb::gil_scoped_release unlocked;
    uniform(compute_pool(), {static_cast<uint64_t>(seed), step}, rows.data(), count, stream, n, out.data());
}

inline Layout layout_of(const std::string& name) {
    if (name == "planar") return Layout::NCHW;
    if (name == "last") return Layout::NHWC;
    require(name == "rgbx", "layout '" + name + "' is not one of planar, last, rgbx.");
    return Layout::RGBX;
}

inline void bind_gather(const Array<const uint8_t, 4>& images, const Index& index, const Maps4& out,
                        const std::string& layout_name, const std::vector<float>& scale,
                        const std::vector<float>& shift, int threads) {
    const int64_t n = size_of(index, 0), channels = size_of(images, 1);
    const int64_t height = size_of(images, 2), width = size_of(images, 3);
    const Layout layout = layout_of(layout_name);
    require(channels == 1 || channels == 3,
            "The images have " + std::to_string(channels) + " channels; 1 or 3 can be gathered.");
    require(layout != Layout::RGBX || channels == 3, "layout rgbx needs 3 channels.");
    const int64_t interleaved = layout == Layout::RGBX ? 4 : channels;
    require_shape("out", out,
                  layout == Layout::NCHW ? Shape{n, channels, height, width} : Shape{n, height, width, interleaved});
    const Records records{images.data(), size_of(images, 0), channels, height * width};
    require_in_range("Image", index, records.count);
    if (out.dtype() == nb::dtype<uint8_t>()) {
        auto* pixels = static_cast<uint8_t*>(out.data());
        nb::gil_scoped_release unlocked;
        if (layout == Layout::NCHW) return gather(loading_pool(), records, index.data(), n, pixels, threads);
        return gather_convert(loading_pool(), records, {}, layout, index.data(), n, pixels, threads);
    }
    const Normalisation norm = normalisation_of(scale, shift, channels);
    if (out.dtype() == nb::dtype<float>()) {
        auto* pixels = static_cast<float*>(out.data());
        nb::gil_scoped_release unlocked;
        return gather_convert(loading_pool(), records, norm, layout, index.data(), n, pixels, threads);
    }
    if (out.dtype() != kBfloat16) throw nb::type_error("out must be uint8, float32 or bfloat16.");
    auto* pixels = static_cast<bfloat16*>(out.data());
    nb::gil_scoped_release unlocked;
    gather_convert(loading_pool(), records, norm, layout, index.data(), n, pixels, threads);
}

inline void bind_resize_box(const Array<const uint8_t, 3>& pixels, int64_t top, int64_t left, int64_t height,
                            int64_t width, bool shorten_first, const Array<uint8_t, 3>& out) {
    const int64_t rows = size_of(pixels, 0), columns = size_of(pixels, 1);
    const int64_t channels = size_of(pixels, 2), size = size_of(out, 2);
    require(channels == 1 || channels == 3, "pixels must have 1 or 3 channels.");
    require(size > 0, "out is empty.");
    require_shape("out", out, {channels, size, size});
    require(0 <= top && 0 <= left && 0 < height && 0 < width && height <= rows - top && width <= columns - left,
            "The window does not lie in the image.");
    const uint8_t* corner = pixels.data() + (top * columns + left) * channels;
    const auto resize = channels == 1 ? resize_box<1> : resize_box<3>;
    nb::gil_scoped_release unlocked;
    resize(corner, columns * channels, height, width, size, shorten_first, out.data(), this_cpu());
}

inline void bind_read(RecordFile& file, int64_t first, const Index& index, const Array<uint8_t, 4>& out) {
    const int64_t n = size_of(index, 0);
    require(size_of(out, 0) == n, "out has room for " + std::to_string(out.shape(0)) +
                                      " records and should have it for " + std::to_string(n) + ".");
    const int64_t bytes = n == 0 ? 0 : static_cast<int64_t>(out.size()) / n;
    require(0 <= first, "first is negative.");
    // So many that the end of the last one, rounded up, is a number of 64 bits.
    const int64_t room = std::max<int64_t>(0, INT64_MAX - kMostAlignment - first);
    require_in_range("Record", index, room / std::max<int64_t>(1, bytes));
    nb::gil_scoped_release unlocked;
    file.read(first, bytes, index.data(), n, out.data());
}

inline void register_data(nb::module_& module) {
    module.def(
        "draw", bind_draw, "seed"_a, "step"_a, "class_offsets"_a.noconvert(), "classes"_a.noconvert(),
        "out"_a.noconvert(), "replace"_a = false,
        "out[i] = out.shape[1] indices of class classes[i], ascending; distinct unless they are drawn with replace.");
    module.def("uniform", bind_uniform, "seed"_a, "step"_a, "rows"_a.noconvert(), "stream"_a, "out"_a.noconvert(),
               "out[i] = numbers in [0, 1) keyed by (seed, step, rows[i], stream).");
    module.def("gather", bind_gather, "images"_a.noconvert(), "index"_a.noconvert(), "out"_a.noconvert(),
               "layout"_a = "planar", "scale"_a = std::vector<float>{}, "shift"_a = std::vector<float>{},
               "threads"_a = 0,
               "out[i] = images[index[i]]: uint8 unchanged, float32 and bfloat16 as x * scale + shift per channel.\n"
               "layout: planar = [C, H, W], last = [H, W, C], rgbx = [H, W, 4] with x = 0.");
    module.def(
        "use_threads", [](int most) { ThreadPool::allowed() = std::max(most, 1); }, "most"_a,
        "Let at most so many threads work on the calls of this thread, the calling one included.");
    module.def("threads", [] { return compute_pool().threads(); }, "The number of threads that the core works with.");
    module.def(
        "instructions",
        [] { return this_cpu() == Cpu::avx512 ? "avx512"
                    : this_cpu() == Cpu::avx2 ? "avx2"
                                              : "plain"; },
        "The widest instructions that the core uses: avx512, avx2 or plain.");
    module.def("resize_box", bind_resize_box, "pixels"_a.noconvert(), "top"_a, "left"_a, "height"_a, "width"_a,
               "shorten_first"_a, "out"_a.noconvert(),
               "Resize a window of an image [H, W, C] to out [C, size, size] exactly as Pillow's Image.BOX.");
    nb::exception<ReadError>(module, "ReadError", PyExc_OSError);
    nb::class_<RecordFile>(module, "RecordFile", "A file whose records are read past the page cache.")
        .def(nb::init<std::string>(), "path"_a)
        .def_prop_ro("direct", &RecordFile::direct)
        .def("read", bind_read, "first"_a, "index"_a.noconvert(), "out"_a.noconvert(),
             "out[i] = record index[i], counted from the byte first.");
}

}  // namespace fastdm
