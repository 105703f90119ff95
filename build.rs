//! Turns `schema/orlop.cgr` into Rust. The file is checked in, so that building needs no `capnp` tool;
//! `scripts/gen-schema.sh` makes it anew and a test fails when it is older than `schema/orlop.capnp`.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=schema/orlop.cgr");
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let request =
        std::fs::File::open("schema/orlop.cgr").expect("schema/orlop.cgr is part of the source");
    capnpc::codegen::CodeGenerationCommand::new()
        .output_directory(out_dir)
        .default_parent_module(vec!["proto".into()])
        .run(request)
        .expect("schema/orlop.cgr is a CodeGeneratorRequest");
}
