package cli_test

import (
	"slices"
	"strings"
	"testing"
)

// dockerRun are the flags of `docker run` (29.7), with their shorthands.
const dockerRun = `add-host annotation attach,a blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile
cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares,c cpus cpuset-cpus cpuset-mems detach,d detach-keys
device device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops disable-content-trust dns dns-opt dns-option
dns-search domainname entrypoint env,e env-file expose gpus group-add health-cmd health-interval health-retries health-start-interval
health-start-period health-timeout help hostname,h init interactive,i io-maxbandwidth io-maxiops ip ip6 ipc isolation kernel-memory label,l
label-file link link-local-ip log-driver log-opt mac-address memory,m memory-reservation memory-swap memory-swappiness mount name net
network net-alias network-alias no-healthcheck oom-kill-disable oom-score-adj pid pids-limit platform privileged publish,p publish-all,P
pull quiet,q read-only restart rm runtime security-opt shm-size sig-proxy stop-signal stop-timeout storage-opt sysctl tmpfs tty,t ulimit
use-api-socket user,u userns uts volume,v volume-driver volumes-from workdir,w`

// dockerCommands are those of `docker`, by what they are about.
const dockerCommands = `run exec ps build bake pull push images login logout search version info attach commit cp create diff events export
history import inspect kill load logs pause port rename restart rm rmi save start stats stop tag top unpause update wait builder buildx
checkpoint compose container context image manifest network plugin system trust volume swarm node service stack`

func TestDockersFlagsOfRunAreKnown(t *testing.T) {
	run, _, err := root().Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range strings.Fields(dockerRun) {
		name, short, _ := strings.Cut(words, ",")
		flag := run.Flags().Lookup(name)
		if flag == nil {
			t.Errorf("--%s is unknown", name)
			continue
		}
		if flag.Shorthand != short {
			t.Errorf("--%s has the shorthand %q, want %q", name, flag.Shorthand, short)
		}
	}
}

func TestDockersCommandsAreKnown(t *testing.T) {
	for _, name := range strings.Fields(dockerCommands) {
		c, rest, err := root().Find([]string{name})
		if err != nil || c.Name() != name || len(rest) > 0 {
			t.Errorf("`creel %s` is unknown: %v", name, err)
			continue
		}
		// What is hidden is in no list of commands, and what is not has to be good
		// for something.
		if !c.Hidden && c.Short == "" {
			t.Errorf("`creel %s` says nothing", name)
		}
	}
}

// The answer to a flag that there is not is an error that ends with what to do,
// and so none begins as a sentence or ends as one.
func TestForeignFlagsAreAnswered(t *testing.T) {
	s := newShell(t)
	for flag, want := range map[string]string{
		"-v a:/b": "--volume: ", "--cpu-shares 5": "--cpu-shares: ", "-a stdout": "--attach: ", "--use-api-socket": "--use-api-socket: ",
		"--oom-kill-disable": "--oom-kill-disable: ", "--link a": "--link: ",
	} {
		out, err := s.run("creel run " + flag + " debian true")
		if err == nil || !strings.Contains(out, want) || strings.Contains(out, "unknown") {
			t.Errorf("%s: %v %s", flag, err, out)
		}
	}
	if out, _ := s.run("creel run --pull never --oom-kill-disable=false debian true"); strings.Contains(out, "--oom-kill-disable") {
		t.Errorf("a flag that asks for nothing: %s", out)
	}
	c, _, _ := root().Find([]string{"run"})
	for _, flag := range []string{"volume", "mount", "cap-drop"} {
		if usage := c.Flags().FlagUsages(); slices.Contains(strings.Fields(usage), "--"+flag) != (flag == "mount") {
			t.Errorf("the help of run has --%s or has it not:\n%s", flag, usage)
		}
	}
}
