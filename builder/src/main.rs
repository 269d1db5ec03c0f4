//! `rbuild`: Dockerfiles to OCI images.

mod cli;
mod environment;
mod failure;
mod request;
mod show;

use std::process::ExitCode;

fn main() -> ExitCode {
    let _ = cli::parse(std::env::args_os());
    ExitCode::SUCCESS
}
