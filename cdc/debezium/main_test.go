package debezium_test

import (
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
)

func TestMain(m *testing.M) { cdctest.Main(m) }
