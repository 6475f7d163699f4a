//! The repository's own Dockerfile.

use std::path::Path;

use crate::support::engine::{self, answer, run_once, said};

#[test]
#[ignore = "run by scripts/test-containers"]
fn the_dockerfile_builds_an_image_of_one_small_file() {
    // As it stands, in a folder of this clone, in an image that has this machine's own toolchain.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let log = engine::settings().join("dockerfile.log");
    let output = std::process::Command::new(root.join("scripts/test-containers")).arg("--dockerfile").output().unwrap();
    std::fs::write(&log, said(&output)).unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let (status, text) = run_once("panzer-from-dockerfile", &["--entrypoint", "/bin/panzer"], &["-V"]);
    assert_eq!((status, text.trim_end()), (0, concat!("panzer ", env!("CARGO_PKG_VERSION"))));
    let config = answer([
        "image",
        "inspect",
        "--format",
        "{{.Config.Entrypoint}} {{.Size}}",
        "localhost/panzer-from-dockerfile",
    ]);
    let (entry, size) = config.rsplit_once(' ').unwrap();
    assert_eq!(entry, "[panzer -n 8 --]");
    let size: u64 = size.parse().unwrap();
    // The file, and what an image says of itself.
    assert!(size < 320_000, "{size} bytes");
}
