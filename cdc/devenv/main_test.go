package devenv_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walpost/walpost/cdc/devenv"
)

// childVariable turns this binary into a parent that starts a server, prints its address, and waits to be killed.
const childVariable = "WALPOST_DEVENV_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func child() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := devenv.StartPostgres(ctx, devenv.PostgresConfig{})
	if err != nil {
		return err
	}
	fmt.Println(server.URL("postgres"))
	_, err = bufio.NewReader(os.Stdin).ReadString('\n')
	return err
}
