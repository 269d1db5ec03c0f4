mod first_build;
mod static_hello;
