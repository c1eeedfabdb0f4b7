package cli

import (
	"creel/internal/cli/command"
	"creel/internal/cli/imagecmd"

	"github.com/spf13/cobra"
)

// Why flags of `docker run` are refused, where several have one reason.
const (
	noMount    = "a sandbox has no part of this machine's files; copy them: `tar c . | creel run -i IMAGE sh -c 'tar x && …'`, or `creel cp`"
	noNetwork  = "a sandbox has a network of its own, which leads where its policy says: --allow HOST[:PORT], --preset, --policy FILE"
	noName     = "names are answered by the policy's edge; write a rule with `upstream:` in a policy file to lead a name elsewhere"
	noHost     = "a sandbox shares no kernel with this machine, so there is no namespace to join or leave"
	noDevice   = "a sandbox has its own virtual devices and none of this machine's"
	noShare    = "give a limit with --cpus or -m; sandboxes have no shares of one another's"
	noDiskRate = "disk speed is not limited; --disk limits its size"
	noHealth   = "tasks have no health checks; run one with `creel exec`"
	noLog      = "the log of `run -d` is kept with the sandbox, up to its size limit; see `creel logs`"
	noDrop     = "a task is as free in its VM as its user is; run it as one with fewer rights, -u USER, and limit what leaves the VM by its policy"
)

// runForeign are the flags of `docker run` that `creel run` has not.
var runForeign = []command.Foreign{
	// What they ask for is so already: the task has a kernel of its own with
	// every capability in it, PID 1 is the guest agent, which reaps, nothing is
	// checked for health, and a digest decides what an image is.
	{Name: "init"}, {Name: "privileged"}, {Name: "cap-add", Word: "capability"}, {Name: "no-healthcheck"},
	{Name: "disable-content-trust"},

	{Name: "volume,v", Word: "from:to", Why: noMount}, {Name: "volumes-from", Word: "sandbox", Why: noMount},
	{Name: "volume-driver", Word: "name", Why: noMount},
	{Name: "network-alias", Word: "name", Why: noNetwork}, {Name: "net-alias", Word: "name", Why: noNetwork},
	{Name: "ip", Word: "address", Why: noNetwork}, {Name: "ip6", Word: "address", Why: noNetwork},
	{Name: "link-local-ip", Word: "address", Why: noNetwork}, {Name: "mac-address", Word: "address", Why: noNetwork},
	{Name: "link", Word: "sandbox", Why: noNetwork},
	{Name: "add-host", Word: "name:address", Why: noName}, {Name: "dns", Word: "address", Why: noName},
	{Name: "dns-opt", Word: "option", Why: noName}, {Name: "dns-option", Word: "option", Why: noName},
	{Name: "dns-search", Word: "name", Why: noName}, {Name: "domainname", Word: "name", Why: noName},
	{Name: "expose", Word: "port", Why: "publish a port with -p"},
	{Name: "publish-all,P", Why: "name the ports, -p 127.0.0.1::PORT; the host's side is then a free one"},
	{Name: "attach,a", Word: "stream", Why: "stdout and stderr are always attached, stdin by -i; redirect those that are not wanted"},
	{Name: "cap-drop", Word: "capability", Why: noDrop}, {Name: "security-opt", Word: "option", Why: noDrop},
	{Name: "group-add", Word: "group", Why: "give the group with the user, -u USER:GROUP"},
	{Name: "userns", Word: "mode", Why: noHost}, {Name: "uts", Word: "mode", Why: noHost}, {Name: "ipc", Word: "mode", Why: noHost},
	{Name: "pid", Word: "mode", Why: noHost}, {Name: "cgroupns", Word: "mode", Why: noHost}, {Name: "cgroup-parent", Word: "name", Why: noHost},
	{Name: "isolation", Word: "kind", Why: "every task is in a MicroVM of its own; --accel and --confinement say how"},
	{Name: "runtime", Word: "name", Why: "every task is in a MicroVM of its own; --accel and --confinement say how"},
	{Name: "device", Word: "device", Why: noDevice}, {Name: "device-cgroup-rule", Word: "rule", Why: noDevice}, {Name: "gpus", Word: "devices", Why: noDevice},
	{Name: "cpu-shares,c", Word: "number", Why: noShare}, {Name: "cpu-period", Word: "number", Why: noShare}, {Name: "cpu-quota", Word: "number", Why: noShare},
	{Name: "cpu-rt-period", Word: "number", Why: noShare}, {Name: "cpu-rt-runtime", Word: "number", Why: noShare},
	{Name: "cpu-count", Word: "number", Why: noShare}, {Name: "cpu-percent", Word: "number", Why: noShare},
	{Name: "cpuset-cpus", Word: "cpus", Why: noShare}, {Name: "cpuset-mems", Word: "nodes", Why: noShare},
	{Name: "memory-reservation", Word: "size", Why: noShare}, {Name: "kernel-memory", Word: "size", Why: noShare},
	{Name: "memory-swap", Word: "size", Why: "a sandbox has no swap"}, {Name: "memory-swappiness", Word: "number", Why: "a sandbox has no swap"},
	{Name: "oom-kill-disable", Why: "a task over its memory limit is killed, exit code 137; give it more with -m"},
	{Name: "oom-score-adj", Word: "number", Why: "a task over its memory limit is killed, exit code 137; give it more with -m"},
	{Name: "blkio-weight", Word: "number", Why: noDiskRate}, {Name: "blkio-weight-device", Word: "weight", Why: noDiskRate},
	{Name: "device-read-bps", Word: "rate", Why: noDiskRate}, {Name: "device-read-iops", Word: "rate", Why: noDiskRate},
	{Name: "device-write-bps", Word: "rate", Why: noDiskRate}, {Name: "device-write-iops", Word: "rate", Why: noDiskRate},
	{Name: "io-maxbandwidth", Word: "rate", Why: noDiskRate}, {Name: "io-maxiops", Word: "rate", Why: noDiskRate},
	{Name: "storage-opt", Word: "option", Why: "the size of the writable disk is --disk SIZE"},
	{Name: "health-cmd", Word: "command", Why: noHealth}, {Name: "health-interval", Word: "time", Why: noHealth},
	{Name: "health-retries", Word: "number", Why: noHealth}, {Name: "health-timeout", Word: "time", Why: noHealth},
	{Name: "health-start-period", Word: "time", Why: noHealth}, {Name: "health-start-interval", Word: "time", Why: noHealth},
	{Name: "log-driver", Word: "name", Why: noLog}, {Name: "log-opt", Word: "option", Why: noLog},
	{Name: "stop-signal", Word: "signal", Why: "say it when you stop the task, `creel stop -s SIGNAL SANDBOX`"},
	{Name: "stop-timeout", Word: "seconds", Why: "say it when you stop the task, `creel stop -t SECONDS SANDBOX`"},
	{Name: "sysctl", Word: "setting", Why: "the task is root of its own kernel: let it run `sysctl -w` itself"},
	{Name: "ulimit", Word: "limit", Why: "let the task set it, `sh -c 'ulimit -n 4096; exec …'`; --pids-limit limits processes"},
	{Name: "annotation", Word: "key=value", Why: "use --label"},
	{Name: "label-file", Word: "file", Why: "use --label for each of its lines"},
	{Name: "cidfile", Word: "file", Why: "`run -d` prints the ID; give a --name to find the sandbox by"},
	{Name: "use-api-socket", Why: "a task has no way to Docker's socket"},
}

// foreign are the flags of Docker's other commands that Creel's have not, by
// the command's name.
var foreign = map[string][]command.Foreign{
	"run":  runForeign,
	"exec": {{Name: "privileged"}},
	"logs": {
		{Name: "details", Why: "`creel inspect` has the sandbox's labels"},
		{Name: "until", Word: "time", Why: "use --since and --tail, or --timestamps and a filter of your own"},
	},
	"rm": {{Name: "volumes,v"}, {Name: "link,l", Why: "sandboxes have no links"}},
	"cp": {
		{Name: "quiet,q"}, {Name: "archive,a", Why: "pass a tar to keep owners: `tar c . | creel cp - SANDBOX:PATH`"},
		{Name: "follow-link,L", Why: "give the path that the link leads to"},
	},
	"inspect": {
		{Name: "size,s", Why: "Status.diskWrittenBytes has what the task wrote"},
		{Name: "type", Word: "kind", Why: "`creel inspect` is of sandboxes, `creel image inspect` of images, `creel template inspect` of templates"},
	},
	"ps": {{Name: "size,s", Why: "`creel inspect` has what a task wrote, once it has ended"}},
}

// dockerOnly are the commands of `docker` that there are not, with what does
// their work.
var dockerOnly = [][2]string{
	{"build", "build the image with `docker build -t NAME .`, or another builder, then `docker save NAME | creel image load`; a root file system in a tar is taken by `creel image import`"},
	{"login", "Creel uses the login that Docker keeps (~/.docker/config.json or $DOCKER_CONFIG, with its credential helpers); run `docker login HOST`"},
	{"logout", "Creel uses the login that Docker keeps; run `docker logout HOST`"},
	{"create", "a sandbox begins with its task: `creel run -d IMAGE COMMAND`"},
	{"start", "a sandbox runs once; `creel run -d IMAGE COMMAND` makes another"},
	{"restart", "a sandbox runs once; `creel rm -f SANDBOX`, then `creel run -d IMAGE COMMAND`"},
	{"commit", "a sandbox does not become an image; take out what you need with `creel cp SANDBOX:PATH .`"},
	{"diff", "take out what you need with `creel cp SANDBOX:PATH -`, and compare"},
	{"export", "`creel cp SANDBOX:PATH - >files.tar` writes a tar"},
	{"port", "`creel ps` shows the ports of each sandbox"},
	{"stats", "`creel inspect SANDBOX` has what a task has used, `creel top SANDBOX` its processes"},
	{"update", "limits are given to `creel run`; `creel policy set SANDBOX FILE` changes what a running task may reach"},
	{"events", "`creel audit tail -f` follows the record"},
	{"history", "`creel image inspect IMAGE` has the image's layers"},
	{"info", "`creel version` and `creel doctor` tell of this machine"},
	{"search", "give the name to `creel image pull NAME`"},
	{"network", "a sandbox has a network of its own, which leads where its policy says; see `creel policy --help`"},
	{"volume", "a sandbox has its own disk, kept from `creel run -d` until `creel rm`; `creel cp` copies files in and out"},
	{"system", "`creel doctor` looks at this machine, `creel image prune` frees room, `creel audit tail -f` follows events"},
	{"buildx", "build with `docker buildx build --load`, then `docker save NAME | creel image load`"},
	{"builder", "build with Docker, then `docker save NAME | creel image load`"},
	{"bake", "build with Docker, then `docker save NAME | creel image load`"},
	{"compose", "start each service with `creel run -d --name NAME -p … IMAGE`; sandboxes reach one another by published ports, `--allow host.creel.internal:PORT`"},
	{"context", "there is no daemon to choose; CREEL_STATE_DIR says where sandboxes are kept"},
	{"manifest", "`creel image inspect IMAGE` shows what is here"},
	{"plugin", "Creel has no plugins"},
	{"trust", "images are pinned by digest, NAME@sha256:…"},
	{"checkpoint", "`creel template build IMAGE` freezes a machine before its task; a task that runs can be paused, `creel pause SANDBOX`"},
	{"swarm", "Creel runs tasks on this machine alone"},
	{"node", "Creel runs tasks on this machine alone"},
	{"service", "Creel runs tasks on this machine alone"},
	{"stack", "Creel runs tasks on this machine alone"},
}

// asDocker are the commands that Docker's users type, hidden: what is the same
// under another name, and what there is not.
func asDocker(env Env) (all []*cobra.Command) {
	images := imageEnv(env)
	for _, name := range []string{"images", "rmi", "pull", "push", "tag", "load", "save", "import"} {
		all = append(all, command.Also(imagecmd.Named(images, dockerImage[name]), name))
	}
	container := command.Group("container", "What `docker container` has", sandboxCommands(env)...)
	container.AddCommand(command.Also(newPS(env), "ls"), command.Also(newPS(env), "list"))
	container.Hidden = true
	for _, c := range dockerOnly {
		all = append(all, command.Elsewhere(c[0], c[1]))
		switch c[0] {
		case "create", "start", "restart", "commit", "diff", "export", "port", "stats", "update":
			container.AddCommand(command.Elsewhere(c[0], c[1]))
		}
	}
	container.AddCommand(command.Elsewhere("prune", "`creel rm SANDBOX` removes one that has ended; `creel ps -a` lists them"))
	return append(all, container)
}

// dockerImage are names of Docker's for the commands of `creel image`.
var dockerImage = map[string]string{
	"images": "ls", "rmi": "rm", "pull": "pull", "push": "push", "tag": "tag", "load": "load", "save": "save", "import": "import",
}
