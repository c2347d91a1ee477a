//go:build debezium && !linux

package connect

import (
	"os/exec"
	"syscall"
)

// start starts cmd. It closes the returned channel after cmd has ended and cmd.ProcessState is set.
func start(cmd *exec.Cmd, _ syscall.Signal) (ended chan struct{}, err error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended = make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	return ended, nil
}
