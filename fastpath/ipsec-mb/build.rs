//! Compiles the shim against the header of Intel's ipsec-mb and links the library, statically where that
//! is installed: the binary then runs on hosts that have no such library.

use std::path::Path;
use std::process::Command;

const MISSING: &str = "intel-ipsec-mb.h is missing. Install it, e.g. apt-get install libipsec-mb-dev, or build \
     without AVX-512: --no-default-features";

fn main() {
    println!("cargo::rerun-if-changed=src/shim.c");
    // Of other processors it has nothing that AWS-LC has not.
    let is_x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    if !is_x86 || std::env::var_os("CARGO_FEATURE_LINK").is_none() {
        return;
    }
    let mut shim = cc::Build::new();
    shim.file("src/shim.c").flag("-Wall").flag("-Wextra");
    if !has_header(&shim) {
        println!("cargo::error={MISSING}");
        return;
    }
    shim.compile("overmesh_ipsec_mb");
    let found = shim.get_compiler().to_command().arg("-print-file-name=libIPSec_MB.a").output();
    let found = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    // A compiler that does not find the file prints its bare name.
    match found.as_deref().map(Path::new).ok().and_then(Path::parent).filter(|folder| folder.is_absolute()) {
        Some(folder) => {
            println!("cargo::rustc-link-search=native={}", folder.display());
            println!("cargo::rustc-link-lib=static=IPSec_MB");
        }
        None => println!("cargo::rustc-link-lib=IPSec_MB"),
    }
}

/// Whether the shim's preprocessor finds the library's header.
fn has_header(shim: &cc::Build) -> bool {
    let mut preprocess: Command = shim.get_compiler().to_command();
    let output = preprocess.args(["-E", "src/shim.c"]).output();
    output.is_ok_and(|output| output.status.success())
}
