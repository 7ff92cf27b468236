//! The program. Everything it does is in the library.
use std::process::ExitCode;

/// Faster than glibc's under many small allocations (`benches/experiments.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    postern::cli::main()
}
