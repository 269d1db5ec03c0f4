//! The merged view over a chain of layers, and what COPY and friends make of it.
