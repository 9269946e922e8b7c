use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything builds a client: without a provider, reqwest panics.
    rustls::crypto::ring::default_provider().install_default().expect("nothing ran before this line");
    taibai::cli::run()
}
