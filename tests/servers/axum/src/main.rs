//! axum as its documentation starts it, on the address given. Each answer names the process.

use axum::{routing::get, Router};

#[tokio::main]
async fn main() {
    let address = std::env::args().nth(1).expect("usage: axum-server ADDRESS");
    let app = Router::new().route("/", get(|| async { format!("pid={}\n", std::process::id()) }));
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    axum::serve(listener, app).await.unwrap();
}
