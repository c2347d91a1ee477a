package config_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/walpost/walpost/cdc/config"
)

// A configuration comes from a YAML file, and the environment wins: here it brings the password. Every mistake is reported at once, each
// with its key.
func ExampleLoad() {
	folder, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(folder) }()
	file := filepath.Join(folder, "walpost.yaml")
	if err := os.WriteFile(file, []byte(`
pipeline: shop
kafka:
  brokers: [localhost:9092]
  aggregate_types: [order]
window: {rows: 1000}
`), 0o600); err != nil {
		fmt.Println(err)
		return
	}

	environment := map[string]string{"WALPOST_SOURCE_URL": "postgres://walpost:secret@localhost:5432/shop"}
	pipelines, err := config.Load(file, func(name string) string { return environment[name] })
	if err != nil {
		fmt.Println(err)
		return
	}
	shop := pipelines[0]
	fmt.Println(shop.Pipeline, shop.Source.Table, shop.Window.Rows, shop.Window.Bytes)

	environment["WALPOST_WINDOW_ROWS"] = "0"
	environment["WALPOST_DELIVERY"] = "twice"
	_, err = config.Load(file, func(name string) string { return environment[name] })
	fmt.Println(err)
	// Output:
	// shop public.outbox 1000 4MiB
	// delivery: "twice": write at_least_once or exactly_once
	// window.rows: 0: must be between 1 and 1000000
}
