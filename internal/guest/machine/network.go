package machine

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The network of every sandbox: each has a netstack of its own, so that the
// same addresses do for all, and can be in the template.
var (
	ownAddress = [4]byte{192, 168, 127, 2}
	gateway    = [4]byte{192, 168, 127, 1}
	netmask    = [4]byte{255, 255, 255, 0}
)

// network brings up the loopback and, where there is one, the only card. IPv6
// ends at the loopback.
func network() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	defer unix.Close(s)
	if err := up(s, "lo"); err != nil {
		return err
	}
	const card = "eth0"
	if _, err := os.Stat("/sys/class/net/" + card); err != nil {
		return nil
	}
	err = os.WriteFile("/proc/sys/net/ipv6/conf/"+card+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, set := range []struct {
		request uint
		address [4]byte
	}{{unix.SIOCSIFADDR, ownAddress}, {unix.SIOCSIFNETMASK, netmask}} {
		ifr, err := unix.NewIfreq(card)
		if err == nil {
			err = ifr.SetInet4Addr(set.address[:])
		}
		if err == nil {
			err = unix.IoctlIfreq(s, set.request, ifr)
		}
		if err != nil {
			return fmt.Errorf("network: address of %s: %w", card, err)
		}
	}
	if err := up(s, card); err != nil {
		return err
	}
	return defaultRoute(s)
}

func up(s int, card string) error {
	ifr, err := unix.NewIfreq(card)
	if err == nil {
		ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		err = unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
	}
	if err != nil {
		return fmt.Errorf("network: bring up %s: %w", card, err)
	}
	return nil
}

func defaultRoute(s int) error {
	type address struct { // sockaddr_in
		family, port uint16
		ip           [4]byte
		_            [8]byte
	}
	route := struct { // rtentry
		_                   uint64
		target, via, mask   address
		flags               uint16
		_                   int16
		_, _                uint64
		metric              int16
		device              uintptr
		mtu, window, minRTT uint64
	}{
		target: address{family: unix.AF_INET}, via: address{family: unix.AF_INET, ip: gateway},
		mask: address{family: unix.AF_INET}, flags: unix.RTF_UP | unix.RTF_GATEWAY,
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCADDRT, uintptr(unsafe.Pointer(&route))); e != 0 {
		return fmt.Errorf("network: default route: %w", e)
	}
	return nil
}
