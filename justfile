# Every command of the project. `just` lists them.

_default:
    @just --list

# Build the release binary (static): target/release/rbuild
build:
    cargo build --release -p builder

# Build it, then build and run a real image
demo:
    ./scripts/demo

# All checks and tests
test:
    ./scripts/test

# Throw damaged Dockerfiles, words and ignore files at the frontend: about 10 minutes
fuzz cases="200000" size="4000000":
    PROPTEST_CASES={{cases}} RBUILD_FUZZ_SIZE={{size}} cargo test -p frontend -p image -- --nocapture

# End a build at every system call that changes something, damage every stored file, fill the disk: about 5 minutes, as root
crash:
    RBUILD_EXHAUSTIVE=1 cargo test -p tests --test runner -- crash_points:: --nocapture

# Format, lint, and look for unused dependencies and forbidden licences
check:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings
    cargo machete
    cargo deny check bans licenses sources

# Measure against what else is installed; writes docs/benchmarks.md
bench:
    ./bench/run --write
