import Foundation

/// A class and how likely it is, 0 to 1.
public struct Likely: Equatable {
    public let name: String
    public let probability: Double
}

/// Probabilities: the values themselves where they are some already, else their softmax.
public func probabilities(_ values: [Float]) -> [Double] {
    let given = values.map(Double.init)
    if given.allSatisfy({ $0 >= 0 }), abs(given.reduce(0, +) - 1) < 1e-3 { return given }
    let largest = given.max() ?? 0
    let shares = given.map { exp($0 - largest) }
    let whole = shares.reduce(0, +)
    return shares.map { $0 / whole }
}

/// The likeliest classes, the likeliest first. Labels that are not as many as the values name nothing.
/// nil where values are no numbers.
public func top(_ values: [Float], labels: [String]?, count: Int) -> [Likely]? {
    guard values.allSatisfy(\.isFinite) else { return nil }
    let names = labels?.count == values.count ? labels : nil
    let found = probabilities(values).enumerated().sorted { ($1.element, $0.offset) < ($0.element, $1.offset) }
    return found.prefix(count).map { Likely(name: names?[$0.offset] ?? "class \($0.offset)", probability: $0.element) }
}

/// The likeliest class of each pixel of a map, rows first; of equal ones the first.
public func likeliest(_ values: [Float], heightPx: Int, widthPx: Int, classes: Int, channelsLast: Bool) -> [Int] {
    let pixels = heightPx * widthPx
    precondition(values.count == pixels * classes, "\(values.count) values for a map of \(pixels) pixels")
    let (between, step) = channelsLast ? (classes, 1) : (1, pixels)
    return (0..<pixels).map { pixel in
        var best = 0
        for number in 1..<max(classes, 1) where values[pixel * between + number * step] > values[pixel * between + best * step] {
            best = number
        }
        return best
    }
}

/// Median and quartiles, between two values where they fall so.
public struct Spread: Equatable {
    public let low: Double
    public let median: Double
    public let high: Double

    public init?(_ milliseconds: [Double]) {
        guard !milliseconds.isEmpty else { return nil }
        let sorted = milliseconds.sorted()
        func at(_ fraction: Double) -> Double {
            let place = fraction * Double(sorted.count - 1)
            let below = Int(place.rounded(.down))
            let above = min(below + 1, sorted.count - 1)
            return sorted[below] + (place - Double(below)) * (sorted[above] - sorted[below])
        }
        (low, median, high) = (at(0.25), at(0.5), at(0.75))
    }
}
