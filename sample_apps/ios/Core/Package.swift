// swift-tools-version:5.9
// All of the app that needs no Apple framework; its tests run on Linux too.

import PackageDescription

let package = Package(
    name: "EdgepruneCore",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "EdgepruneCore", targets: ["EdgepruneCore"])],
    targets: [
        .target(name: "EdgepruneCore"),
        .testTarget(name: "EdgepruneCoreTests", dependencies: ["EdgepruneCore"]),
    ]
)
