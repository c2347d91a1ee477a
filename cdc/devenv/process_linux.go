package devenv

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// startProcess starts cmd so that it gets SIGQUIT, which is an immediate shutdown, when this process dies. The kernel
// sends that signal when the thread that forked ends, so the thread must live as long as the child.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	p := &process{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		if p.err = cmd.Wait(); p.err == nil {
			p.err = fmt.Errorf("exit status 0")
		}
		close(p.ended)
	}()
	return p, <-started
}

// lockFolder locks a folder for as long as this process lives.
func lockFolder(folder string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(folder, "owner"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return f, syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// keep reserves a port in all processes, also while nothing listens on it.
func keep(port int) (io.Closer, error) {
	return net.Listen("unix", fmt.Sprintf("@walpost-port-%d", port)) // an abstract socket: it ends with the process
}

// sweep removes the folders of processes that were killed. It spares new folders, which may not be locked yet.
func sweep(pattern string) {
	folders, _ := filepath.Glob(pattern)
	for _, folder := range folders {
		f, err := os.Open(filepath.Join(folder, "owner"))
		if err != nil {
			continue // another user's folder
		}
		info, err := f.Stat()
		if err == nil && time.Since(info.ModTime()) > time.Minute && syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(folder)
		}
		_ = f.Close()
	}
}

// serverUser is the user that the server runs as: PostgreSQL refuses to run as root.
type serverUser struct {
	name       string
	credential *syscall.Credential // nil: the user of this process
}

func findServerUser() (serverUser, error) {
	if os.Getuid() != 0 {
		return serverUser{name: "uid " + strconv.Itoa(os.Getuid())}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return serverUser{name, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
		}
	}
	return serverUser{}, fmt.Errorf("PostgreSQL does not run as root and there is no user postgres or nobody: add one of them or run as another user")
}

// own gives a file to the server's user.
func (u serverUser) own(path string) error {
	if u.credential == nil {
		return nil
	}
	return os.Chown(path, int(u.credential.Uid), int(u.credential.Gid))
}

// openFolder lets the server's user enter a folder of this process.
func (u serverUser) openFolder(path string) error {
	if u.credential == nil {
		return nil
	}
	if err := os.Chmod(path, 0o755); err != nil {
		return fmt.Errorf("open PostgreSQL's folder to user %s: %w", u.name, err)
	}
	return nil
}

// prepare sets the user and the folder of cmd. A separate process group keeps the terminal's Ctrl-C away from the
// server: the program that started the server decides when it stops.
func (u serverUser) prepare(cmd *exec.Cmd, folder string) {
	cmd.Dir = folder
	cmd.Env = serverEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.credential, Setpgid: true}
}

// memory returns a folder of a file system in memory, or "" if there is none with room for servers: containers often
// have only 64 MB.
func memory() string {
	const folder, room = "/dev/shm", 4 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(folder, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < room {
		return ""
	}
	return folder
}
