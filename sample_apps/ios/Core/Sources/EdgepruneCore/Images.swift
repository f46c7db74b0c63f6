import Foundation

/// An RGB image: 3 bytes a pixel, rows first.
public struct RGBImage: Equatable {
    public let widthPx: Int
    public let heightPx: Int
    public let bytes: [UInt8]

    public init(widthPx: Int, heightPx: Int, bytes: [UInt8]) {
        precondition(bytes.count == colours * widthPx * heightPx, "\(bytes.count) bytes for \(widthPx) x \(heightPx) pixels")
        self.widthPx = widthPx
        self.heightPx = heightPx
        self.bytes = bytes
    }
}

/// Pillow's antialiased filters.
public enum Interpolation: String, Codable {
    case nearest, bilinear, bicubic, lanczos

    /// How many pixels to either side count; 0: only the nearest.
    var support: Double {
        switch self {
        case .nearest: return 0
        case .bilinear: return 1
        case .bicubic: return 2
        case .lanczos: return 3
        }
    }

    func share(_ x: Double) -> Double {
        switch self {
        case .nearest: return 1
        case .bilinear: return max(0, 1 - abs(x))
        case .bicubic: return cubic(x)
        case .lanczos: return abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0
        }
    }
}

private func cubic(_ x: Double) -> Double {
    let (a, t) = (-0.5, abs(x))
    if t < 1 { return ((a + 2) * t - (a + 3)) * t * t + 1 }
    return t < 2 ? ((t - 5) * t + 8) * t * a - 4 * a : 0
}

private func sinc(_ x: Double) -> Double {
    x == 0 ? 1 : sin(Double.pi * x) / (Double.pi * x)
}

/// Resize and crop the middle, as the training side does; with `wholeImage` nothing is cropped: the image is squeezed.
///
/// With `resizePx` the whole image is resized until its shorter side has that many pixels, then the middle is cropped;
/// without it the largest middle part of the wanted proportions is cropped first, then resized.
public func fit(
    _ image: RGBImage, widthPx: Int, heightPx: Int, resizePx: Int?, interpolation: Interpolation, wholeImage: Bool = false
) -> RGBImage {
    let axes: (across: Axis, down: Axis)
    if wholeImage {
        axes = (squeezed(image.widthPx, widthPx), squeezed(image.heightPx, heightPx))
    } else if let resizePx, resizePx >= max(widthPx, heightPx) {
        axes = resized(image, widthPx, heightPx, resizePx)
    } else {
        axes = cropped(image, widthPx, heightPx)
    }
    let columns = taps(axes.across, limit: image.widthPx, interpolation)
    let rows = taps(axes.down, limit: image.heightPx, interpolation)
    // One way after the other, rounding to bytes between, as Pillow does. Which way it goes first was found by trying
    // version 13: down where that takes away more than twice as many rows as going across takes columns.
    let rowsGone = image.heightPx - axes.down.whole
    if rowsGone > 0, rowsGone > 2 * (image.widthPx - axes.across.whole) {
        return resampledAcross(resampledDown(image, rows), columns)
    }
    return resampledDown(resampledAcross(image, columns), rows)
}

/// Pixels as a model takes them: in `range`, or normalised; channels first or last, as the model has them.
/// nil where neither is known.
public func tensor(
    _ image: RGBImage, channelsLast: Bool, range: ClosedRange<Double>?, normalization: Normalization?
) -> [Float]? {
    guard range != nil || normalization != nil else { return nil }
    let pixels = image.widthPx * image.heightPx
    var values = [Float](repeating: 0, count: image.bytes.count)
    for pixel in 0..<pixels {
        for channel in 0..<colours {
            var value = Double(image.bytes[colours * pixel + channel]) / 255
            if let range {
                value = range.lowerBound + value * (range.upperBound - range.lowerBound)
            } else if let normalization {
                value = (value - normalization.mean[channel]) / normalization.std[channel]
            }
            values[channelsLast ? colours * pixel + channel : channel * pixels + pixel] = Float(value)
        }
    }
    return values
}

/// Along an axis: where what is resized starts, its pixels a new pixel, how many new ones there are on the whole, and
/// which of them are wanted.
private struct Axis {
    let start: Double
    let scale: Double
    let whole: Int
    let first: Int
    let count: Int
}

private func squeezed(_ side: Int, _ count: Int) -> Axis {
    Axis(start: 0, scale: Double(side) / Double(count), whole: count, first: 0, count: count)
}

private func cropped(_ image: RGBImage, _ widthPx: Int, _ heightPx: Int) -> (Axis, Axis) {
    let scale = min(Double(image.widthPx) / Double(widthPx), Double(image.heightPx) / Double(heightPx))
    func along(_ side: Int, _ count: Int) -> Axis {
        Axis(start: (Double(side) - scale * Double(count)) / 2, scale: scale, whole: count, first: 0, count: count)
    }
    return (along(image.widthPx, widthPx), along(image.heightPx, heightPx))
}

private func resized(_ image: RGBImage, _ widthPx: Int, _ heightPx: Int, _ resizePx: Int) -> (Axis, Axis) {
    let shorter = min(image.widthPx, image.heightPx)
    func along(_ side: Int, _ count: Int) -> Axis {
        let whole = side == shorter ? resizePx : Int(Double(resizePx) * Double(side) / Double(shorter))
        let first = (Double(whole - count) / 2).rounded(.toNearestOrEven)
        return Axis(start: 0, scale: Double(side) / Double(whole), whole: whole, first: Int(first), count: count)
    }
    return (along(image.widthPx, widthPx), along(image.heightPx, heightPx))
}

/// Which old pixels a new one is made of, and how much of each, in whole numbers of 2^-22 as Pillow counts.
private struct Tap {
    let first: Int
    let shares: [Int]
}

private let precisionBits = 22
private let one = 1 << precisionBits

private func counted(_ share: Double) -> Int {
    Int(share * Double(one) + (share < 0 ? -0.5 : 0.5))
}

private func taps(_ axis: Axis, limit: Int, _ interpolation: Interpolation) -> [Tap] {
    if interpolation == .nearest { return nearest(axis, limit) }
    let stretch = max(axis.scale, 1)
    let reach = interpolation.support * stretch
    return (0..<axis.count).map { index in
        let centre = axis.start + (Double(axis.first + index) + 0.5) * axis.scale
        let first = max(0, Int((centre - reach + 0.5).rounded(.down)))
        let last = min(limit, Int((centre + reach + 0.5).rounded(.down)))
        let shares = (first..<last).map { interpolation.share((Double($0) - centre + 0.5) / stretch) }
        let sum = shares.reduce(0, +)
        return Tap(first: first, shares: shares.map { counted($0 / sum) })
    }
}

/// The old pixel at each new one's centre; centres are added up, as Pillow does, rounding errors and all.
private func nearest(_ axis: Axis, _ limit: Int) -> [Tap] {
    var centre = axis.start + axis.scale * 0.5
    for _ in 0..<axis.first { centre += axis.scale }
    return (0..<axis.count).map { _ in
        defer { centre += axis.scale }
        return Tap(first: min(max(Int(centre.rounded(.down)), 0), limit - 1), shares: [one])
    }
}

private func resampledAcross(_ image: RGBImage, _ columns: [Tap]) -> RGBImage {
    var made = [UInt8](repeating: 0, count: colours * columns.count * image.heightPx)
    for y in 0..<image.heightPx {
        for (x, tap) in columns.enumerated() {
            let from = colours * (y * image.widthPx + tap.first)
            mix(image.bytes, from, step: colours, tap.shares, &made, colours * (y * columns.count + x))
        }
    }
    return RGBImage(widthPx: columns.count, heightPx: image.heightPx, bytes: made)
}

private func resampledDown(_ image: RGBImage, _ rows: [Tap]) -> RGBImage {
    var made = [UInt8](repeating: 0, count: colours * image.widthPx * rows.count)
    for (y, tap) in rows.enumerated() {
        for x in 0..<image.widthPx {
            let from = colours * (tap.first * image.widthPx + x)
            mix(image.bytes, from, step: colours * image.widthPx, tap.shares, &made, colours * (y * image.widthPx + x))
        }
    }
    return RGBImage(widthPx: image.widthPx, heightPx: rows.count, bytes: made)
}

private func mix(
    _ source: [UInt8], _ from: Int, step: Int, _ shares: [Int], _ made: inout [UInt8], _ to: Int
) {
    for channel in 0..<colours {
        var (sum, position) = (one / 2, from + channel)
        for share in shares {
            sum += share * Int(source[position])
            position += step
        }
        made[to + channel] = UInt8(min(max(sum >> precisionBits, 0), 255))
    }
}
