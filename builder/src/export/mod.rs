//! From a solved build to an image, and where it goes.

pub(crate) mod assemble;
pub(crate) mod flat;
