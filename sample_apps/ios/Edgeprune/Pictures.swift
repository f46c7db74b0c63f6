import CoreGraphics
import EdgepruneCore
import UIKit

/// An image as RGB pixels, turned upright. Colours are converted to sRGB; the training side leaves them as they are.
func pixels(of image: UIImage) -> RGBImage? {
    guard let source = image.cgImage else { return nil }
    let turned = [.left, .leftMirrored, .right, .rightMirrored].contains(image.imageOrientation)
    let (width, height) = turned ? (source.height, source.width) : (source.width, source.height)
    let format = UIGraphicsImageRendererFormat()
    format.scale = 1
    format.opaque = true
    let size = CGSize(width: width, height: height)
    let upright = UIGraphicsImageRenderer(size: size, format: format).image { _ in image.draw(in: CGRect(origin: .zero, size: size)) }
    guard let drawn = upright.cgImage, let space = CGColorSpace(name: CGColorSpace.sRGB) else { return nil }
    var rgba = [UInt8](repeating: 0, count: 4 * width * height)
    let done = rgba.withUnsafeMutableBytes { buffer -> Bool in
        let context = CGContext(
            data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
            space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue
        )
        context?.draw(drawn, in: CGRect(origin: .zero, size: size))
        return context != nil
    }
    guard done else { return nil }
    var rgb = [UInt8]()
    rgb.reserveCapacity(colours * width * height)
    for pixel in 0..<(width * height) { rgb.append(contentsOf: rgba[(4 * pixel)..<(4 * pixel + colours)]) }
    return RGBImage(widthPx: width, heightPx: height, bytes: rgb)
}

/// Pixels to be shown.
func picture(of image: RGBImage) -> CGImage? {
    guard let provider = CGDataProvider(data: Data(image.bytes) as CFData), let space = CGColorSpace(name: CGColorSpace.sRGB)
    else { return nil }
    return CGImage(
        width: image.widthPx, height: image.heightPx, bitsPerComponent: 8, bitsPerPixel: 8 * colours,
        bytesPerRow: colours * image.widthPx, space: space, bitmapInfo: [], provider: provider, decode: nil,
        shouldInterpolate: false, intent: .defaultIntent
    )
}

/// A map of classes, each a colour; the first is grey.
func picture(of map: ClassMap) -> CGImage? {
    let palette = (0..<max(map.classes, 1)).map { number -> [UInt8] in
        let hue = CGFloat(number) / CGFloat(max(map.classes, 1))
        var (red, green, blue) = (CGFloat(0), CGFloat(0), CGFloat(0))
        UIColor(hue: hue, saturation: number == 0 ? 0 : 0.8, brightness: 0.8, alpha: 1)
            .getRed(&red, green: &green, blue: &blue, alpha: nil)
        return [red, green, blue].map { UInt8((255 * $0).rounded()) }
    }
    let bytes = map.likeliest.flatMap { palette[$0] }
    return picture(of: RGBImage(widthPx: map.widthPx, heightPx: map.heightPx, bytes: bytes))
}
