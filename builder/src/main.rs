//! `rbuild`: Dockerfiles to OCI images.

mod cli;
mod failure;
mod request;

use std::process::ExitCode;

fn main() -> ExitCode {
    let _ = cli::parse(std::env::args_os());
    ExitCode::SUCCESS
}
