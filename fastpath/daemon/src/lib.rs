//! The fastpath process: one lane that carries packets, and what tells it how.
//!
//! [`lane`] is the loop. [`engine`] makes what is asked for so, with devices from a [`backend`];
//! it is asked by [`control`] (the agent's socket) or by [`config`] (a file, by hand).

pub mod backend;
mod backlog;
pub mod command;
pub mod config;
pub mod control;
mod deliver;
pub mod engine;
mod gather;
mod handover;
pub mod lane;
pub mod probe;
pub mod proto;
mod running;
pub mod server;
mod stats;
