//! Dockerfile text to build graph. A function of text, request and resolved image configs: it opens nothing, asks no
//! clock, and any bytes give diagnostics, never a panic.

pub mod text;

pub mod ast;
pub mod diagnostic;
pub mod expand;
pub mod ignore;
pub mod lint;
pub mod parser;
pub mod request;

pub mod convert;
pub mod download;
pub mod git;
pub mod outline;
pub mod stages;

mod suggest;
mod value;

pub use ast::Dockerfile;
pub use convert::convert;
pub use diagnostic::Diagnostic;
pub use parser::parse;
