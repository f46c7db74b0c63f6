plugins {
    id("com.android.application")
    kotlin("android")
}

android {
    namespace = "edgeprune.app"
    compileSdk = 36

    defaultConfig {
        applicationId = "edgeprune.app"
        minSdk = 29
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64")
        }
    }

    // A compressed model cannot be mapped into memory: it would be copied when it is loaded.
    androidResources {
        noCompress += "tflite"
    }

    // Native libraries stay uncompressed and aligned in the APK, as devices with 16 KB pages need.
    packaging {
        jniLibs {
            useLegacyPackaging = false
        }
    }
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    implementation(project(":core"))
    // CompiledModel, and org.tensorflow.lite.Interpreter with it. Built for 16 KB pages; tensorflow-lite is not.
    implementation("com.google.ai.edge.litert:litert:2.2.0")
}
