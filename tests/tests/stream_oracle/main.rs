//! Windows, watermarks and the life of streaming jobs, against what PostgreSQL and a small model make of the same rows.

mod aggregates;
mod dedup;
mod events;
mod idle;
mod joins;
mod late;
mod life;
mod refused;
mod run;
mod windows;
