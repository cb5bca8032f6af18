//! Tasks of the workspace: `cargo run -p xtask -- proto [--check]`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo run -p xtask -- proto [--check]";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["proto"] => write_proto(),
        ["proto", "--check"] => check_proto(),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Generates the Rust code of `proto/fastpath.proto` into the daemon's sources.
fn write_proto() -> Result<()> {
    generate(&committed())
}

/// Fails if the committed code is not what the generator makes of `proto/fastpath.proto`.
fn check_proto() -> Result<()> {
    let fresh = root().join("target/proto");
    fs::create_dir_all(&fresh)?;
    generate(&fresh)?;
    let name = "overmesh.fastpath.v1.rs";
    if fs::read(fresh.join(name))? != fs::read(committed().join(name))? {
        return Err("daemon/src/proto is not current. run `cargo run -p xtask -- proto`".into());
    }
    Ok(())
}

fn generate(into: &Path) -> Result<()> {
    let files = protox::compile(["fastpath.proto"], [root().join("../proto")])?;
    tonic_prost_build::configure()
        .out_dir(into)
        .emit_rerun_if_changed(false)
        .btree_map(".")
        .compile_fds(files)?;
    Ok(())
}

fn committed() -> PathBuf {
    root().join("daemon/src/proto")
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
