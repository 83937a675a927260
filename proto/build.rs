//! Compiles the contract without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "essaim/v1/jobs.proto",
        "essaim/v1/cluster.proto",
        "essaim/v1/plan.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("essaim.v1.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        .bytes(".essaim.v1")
        // It holds a secret.
        .skip_debug([".essaim.v1.RegisterResponse"])
        .compile_fds(descriptors)?;
    Ok(())
}
