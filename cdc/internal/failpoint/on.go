//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// point is one entry of the variable.
type point struct {
	action string
	at     int64 // acts at this pass
	passed atomic.Int64
}

var points = parse(os.Getenv("WALPOST_FAILPOINT"))

func parse(text string) map[string]*point {
	all := map[string]*point{}
	for entry := range strings.SplitSeq(text, ",") {
		if entry == "" {
			continue
		}
		name, what, found := strings.Cut(entry, ":")
		action, at, counted := strings.Cut(what, "@")
		p := &point{action: action, at: 1}
		var err error
		if counted {
			p.at, err = strconv.ParseInt(at, 10, 64)
		}
		if d, sleeps := strings.CutPrefix(action, "sleep="); sleeps && err == nil {
			_, err = time.ParseDuration(d)
		}
		if !found || err != nil {
			panic(fmt.Sprintf("WALPOST_FAILPOINT=%q: write name:action@n: %v", entry, err))
		}
		all[name] = p
	}
	return all
}

// Hit carries out the action of the named point. The relay calls it when it passes the point.
func Hit(name string) error {
	p := points[name]
	if p == nil || p.passed.Add(1) != p.at {
		return nil
	}
	fmt.Fprintf(os.Stderr, "failpoint %s: %s\n", name, p.action)
	switch action, d, _ := strings.Cut(p.action, "="); action {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // nothing more is done until the signal arrives
	case "stop":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case "sleep":
		pause, _ := time.ParseDuration(d)
		time.Sleep(pause)
	case "error":
		return fmt.Errorf("failpoint %s", name)
	default:
		panic("WALPOST_FAILPOINT: unknown action " + p.action)
	}
	return nil
}
