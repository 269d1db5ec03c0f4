//! End-to-end tests: the built binary on real input. One binary; a module a feature.

mod e2e;

#[test]
fn no_test_file_is_forgotten() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e");
    let declared = std::fs::read_to_string(format!("{dir}/mod.rs")).expect("mod.rs is there");
    for entry in std::fs::read_dir(dir).expect("the directory is there") {
        let name =
            entry.expect("a directory can be listed").file_name().into_string().expect("names are UTF-8");
        let module = name.trim_end_matches(".rs");
        assert!(
            module == "mod" || declared.contains(&format!("mod {module};")),
            "mod.rs lacks `mod {module};`"
        );
    }
}
