-- Run once, on an empty volume. Tables and roles are the business of the services' own `migrate` and of `walpost init`.
CREATE DATABASE orders;
CREATE DATABASE inventory;
