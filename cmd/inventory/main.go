// Command inventory keeps the stock: it applies the order events of a Kafka topic to its own PostgreSQL database, exactly
// once each, and answers over HTTP.
package main

import (
	"os"

	"github.com/walpost/walpost/cmd/internal/app"
)

func main() { app.Main(runAmong(os.Environ())) }

// runAmong is the program with the environment, name=value each.
func runAmong(environ []string) app.Run { return app.Among(environ, run) }
