// The arguments of the bindings: arrays, their checks, and their view as the core's types.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "convert.h"
#include "gather.h"
#include "shapes.h"

namespace fastdm {

namespace nb = nanobind;

template <class T, int kDims>
using Array = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Index = Array<const int64_t, 1>;
using Floats = Array<float, 1>;
// Images or feature maps of a dtype that is checked when they are used.
using Maps4 = nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Shape = std::vector<int64_t>;

const nb::dlpack::dtype kBfloat16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};

inline void require(bool holds, const std::string& message) {
    if (!holds) throw nb::value_error(message.c_str());
}

inline std::string text(const Shape& shape) {
    std::string sizes;
    for (int64_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
    return "[" + sizes + "]";
}

template <class A>
int64_t size_of(const A& array, size_t axis) {
    return static_cast<int64_t>(array.shape(axis));
}

template <class A>
void require_shape(const std::string& name, const A& array, const Shape& shape) {
    Shape found;
    for (size_t axis = 0; axis < array.ndim(); ++axis) found.push_back(size_of(array, axis));
    require(found == shape, name + " has the shape " + text(found) + " and should have " + text(shape) + ".");
}

inline void require_in_range(const std::string& what, const Index& index, int64_t count) {
    const int64_t wrong = find_out_of_range(index.data(), static_cast<int64_t>(index.size()), count);
    if (wrong < 0) return;
    require(false, what + " " + std::to_string(index.data()[wrong]) + " at position " + std::to_string(wrong) +
                       " does not exist: there are " + std::to_string(count) + ".");
}

// The data of an optional array, or nullptr.
template <class A>
auto data_or_null(const A& array) {
    return array.is_valid() ? array.data() : nullptr;
}

// Calls body with a null pointer of the arrays' element type.
template <class Body>
void with_dtype(const Maps4& x, const Maps4& other, const Body& body) {
    if (x.dtype() != other.dtype()) throw nb::type_error("The arrays must have the same type.");
    if (x.dtype() == nb::dtype<float>()) return body(static_cast<float*>(nullptr));
    if (x.dtype() == kBfloat16) return body(static_cast<bfloat16*>(nullptr));
    throw nb::type_error("The arrays must be float32 or bfloat16.");
}

// [N, H, W, C] if channels_last, else [N, C, H, W].
inline Maps maps_of(const Maps4& x, bool channels_last) {
    if (channels_last) return {size_of(x, 0), size_of(x, 3), {size_of(x, 1), size_of(x, 2)}, true};
    return {size_of(x, 0), size_of(x, 1), {size_of(x, 2), size_of(x, 3)}, false};
}

inline Shape shape_of(const Maps& maps, MapSize size) {
    if (maps.channels_last) return {maps.count, size.height, size.width, maps.channels};
    return {maps.count, maps.channels, size.height, size.width};
}

inline Normalisation normalisation_of(const std::vector<float>& scale, const std::vector<float>& shift,
                                      int64_t channels) {
    require(static_cast<int64_t>(scale.size()) == channels && static_cast<int64_t>(shift.size()) == channels,
            "scale and shift must have one number for each of the " + std::to_string(channels) + " channels.");
    Normalisation norm{};
    std::copy(scale.begin(), scale.end(), norm.scale);
    std::copy(shift.begin(), shift.end(), norm.shift);
    return norm;
}

}  // namespace fastdm
