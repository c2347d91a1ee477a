//go:build !linux

package devenv

import (
	"errors"
	"io"
	"os"
	"os/exec"
)

// startProcess starts cmd. Only Close ends it: on this system the server continues to run when its parent dies
// suddenly.
func startProcess(cmd *exec.Cmd) (*process, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	go func() {
		if p.err = cmd.Wait(); p.err == nil {
			p.err = errors.New("exit status 0")
		}
		close(p.ended)
	}()
	return p, nil
}

func lockFolder(string) (*os.File, error) { return nil, nil }

func keep(int) (io.Closer, error) { return io.NopCloser(nil), nil }

func sweep(string) {}

func memory() string { return "" }

type serverUser struct{ name string }

func findServerUser() (serverUser, error) {
	if os.Getuid() == 0 {
		return serverUser{}, errors.New("PostgreSQL does not run as root: run as another user")
	}
	return serverUser{name: "yourself"}, nil
}

func (serverUser) own(string) error { return nil }

func (serverUser) openFolder(string) error { return nil }

func (serverUser) prepare(cmd *exec.Cmd, folder string) {
	cmd.Dir = folder
	cmd.Env = serverEnv()
}
