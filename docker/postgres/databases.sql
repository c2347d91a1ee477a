-- Runs once, on an empty volume. The services' `migrate` and `walpost init` create tables and roles.
CREATE DATABASE orders;
CREATE DATABASE inventory;
