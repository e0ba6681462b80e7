//! Links the payload as a freestanding executable at 1 MiB, whatever the target's defaults are for programs.

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-changed=src/start.s");
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,norelro"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{directory}/link.ld");
}
