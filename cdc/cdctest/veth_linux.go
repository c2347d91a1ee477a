package cdctest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Veth returns a link without a delay that the kernel forwards: a pair of devices, the far one in a network namespace
// that only swaps addresses, as Delayed does. The kernel splits and merges segments on it as it does for a network
// card. It needs root and the programs ip, nft and sysctl; without them the test is skipped. The link ends with the
// test.
func Veth(t testing.TB, mtu int) *Link {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	n := rand.IntN(256) // if two tests take the same number at once, one fails
	l := &Link{Host: fmt.Sprintf("198.19.%d.1", n), Peer: fmt.Sprintf("198.19.%d.2", n), device: fmt.Sprintf("wpveth%d", n)}
	steps := strings.NewReplacer("MTU", fmt.Sprint(mtu), "DEVICE", l.device, "HOST", l.Host, "PEER", l.Peer, "NEAR", "02:00:00:00:00:01", "FAR", "02:00:00:00:00:02").Replace(`
		ip netns add DEVICE
		ip netns exec DEVICE sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0
		ip netns exec DEVICE sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
		ip link add DEVICE mtu MTU address NEAR type veth peer name far mtu MTU address FAR netns DEVICE
		ip address add HOST peer PEER dev DEVICE
		ip link set DEVICE up
		ip neighbour add PEER lladdr FAR nud permanent dev DEVICE
		ip -n DEVICE link set far up
		ip -n DEVICE route add HOST dev far
		ip -n DEVICE neighbour add HOST lladdr NEAR nud permanent dev far
		ip netns exec DEVICE nft add table ip swap
		ip netns exec DEVICE nft add chain ip swap swap { type filter hook prerouting priority raw ; }
		ip netns exec DEVICE nft add rule ip swap swap ip saddr HOST ip daddr PEER ip saddr set PEER ip daddr set HOST`)
	for _, program := range []string{"ip", "nft", "sysctl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	made := false
	t.Cleanup(func() {
		if !made {
			return
		}
		if out, err := exec.Command("ip", "netns", "delete", l.device).CombinedOutput(); err != nil {
			t.Errorf("delete network namespace %s: %v\n%s", l.device, err, out)
		}
	})
	for line := range strings.Lines(strings.TrimSpace(steps)) {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.TrimSpace(line), err, bytes.TrimSpace(out))
		}
		made = true
	}
	return l
}
