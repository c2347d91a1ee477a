// Command inventory keeps the stock: it applies the order events of a Kafka topic to its own PostgreSQL database, exactly
// once each, and answers over HTTP.
package main

import "github.com/walpost/walpost/cmd/internal/app"

func main() { app.Main(run) }
