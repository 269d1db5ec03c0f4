mod archives;
mod cache_travels;
mod doctor;
mod first_build;
mod images;
mod login;
mod prune;
mod static_hello;
