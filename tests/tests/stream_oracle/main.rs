//! Windows, watermarks and the life of streaming jobs, against what PostgreSQL and a small model make of the same rows.

mod events;
mod late;
mod run;
mod windows;
