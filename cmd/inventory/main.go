// Command inventory keeps the stock: it applies the order events of a Kafka topic to a PostgreSQL database, exactly
// once each, and serves the stock over HTTP.
package main

import (
	"os"

	"github.com/walpost/walpost/cmd/internal/app"
)

func main() { app.Main(runAmong(os.Environ())) }

// runAmong returns the program for the environment, name=value each.
func runAmong(environ []string) app.Run { return app.Among(environ, run) }
