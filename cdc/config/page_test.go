package config

import (
	"os"
	"regexp"
	"strings"
	"testing"

	_ "github.com/walpost/walpost/cdc/identity/aws"
)

// TestBlocksToCopyAreRight reads each block of Kafka's on the page about identity: only files may be missing.
func TestBlocksToCopyAreRight(t *testing.T) {
	page, err := os.ReadFile("../identity/README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(kafka:\n.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 8 {
		t.Errorf("only %d blocks were found", len(blocks))
	}
	for _, block := range blocks {
		_, err := parseOne("pipeline: shop\nsource: {url: 'postgres://walpost@localhost/shop'}\n"+block[1]+"  aggregate_types: [order]\n", noEnv)
		if err == nil {
			continue
		}
		for line := range strings.Lines(err.Error()) {
			if !strings.Contains(line, ": no such file or directory") {
				t.Errorf("%s\n%s", line, block[1])
			}
		}
	}
}

// TestBlocksOfThePageAreRight loads each block of CONFIGURATION.md that is a whole configuration file.
func TestBlocksOfThePageAreRight(t *testing.T) {
	page, err := os.ReadFile("../CONFIGURATION.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 2 {
		t.Errorf("only %d blocks were found", len(blocks))
	}
	for _, block := range blocks {
		if _, err := parse("orders.yaml", []byte(block[1]), noEnv); err != nil {
			t.Errorf("%v\n%s", err, block[1])
		}
	}
}
