//go:build debezium

package connect

import (
	"os/exec"
	"runtime"
	"syscall"
)

// start starts cmd so that it gets a signal when this process dies. It closes the returned channel after cmd has ended and
// cmd.ProcessState is set. The kernel sends the signal when the thread that forked ends, so the thread lives as long as cmd.
func start(cmd *exec.Cmd, orphaned syscall.Signal) (ended chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: orphaned, Setpgid: true}
	ended = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		_ = cmd.Wait()
		close(ended)
	}()
	return ended, <-started
}
