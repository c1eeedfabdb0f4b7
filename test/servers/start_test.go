package servers

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// starts are the servers; each starts one program, which may be several
// servers, and stops it when the test ends.
var starts = map[string]func(t *testing.T) []server{
	"go": startGo, "python": startPython, "nginx": startNginx, "apache": startApache, "lighttpd": startLighttpd,
	"tomcat": startTomcat, "jetty": startJetty, "express": startExpress, "rails": startRails,
}

// unpacked is a path below what scripts/servers has brought.
func unpacked(t *testing.T, path string) string {
	t.Helper()
	full, err := filepath.Abs(filepath.Join("../../build/servers", path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(full); err != nil {
		t.Skipf("%s is not there; run scripts/servers", filepath.Base(path))
	}
	return full
}

// documents is a directory with what is served as files. A server that gives
// up root can read it.
func documents(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "creel-servers-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, text := range map[string]string{
		"www/v1/items/x.txt": allowed, "www/v1/items/y": allowed, "www/v1/items/index.html": allowed, "www/v1/items/admin/x.txt": forbidden,
		"www/v1/items/admin/index.html": forbidden, "www/v1/secrets/k.txt": forbidden, "www/secrets/k.txt": forbidden,
	} {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	full := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return full
}

// freePorts are nobody's at the moment.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return ports
}

// process is a program that was started, which the end of the test stops.
type process struct {
	line  string // the first that it printed, where that was asked for
	ended chan struct{}
}

func run(t *testing.T, line bool, env []string, program string, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, program, args...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 10 * time.Second
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Env = append(os.Environ(), env...)
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = log
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &process{ended: make(chan struct{})}
	read := make(chan struct{}) // Wait may be called
	go func() {
		defer close(p.ended)
		<-read
		io.Copy(io.Discard, out)
		c.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-p.ended
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s said:\n%s", filepath.Base(program), text)
		}
	})
	defer close(read)
	if !line {
		return p
	}
	first, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%s printed no line: %v", filepath.Base(program), err)
	}
	p.line = strings.TrimSpace(first)
	return p
}

// await waits until each port is listened on.
func (p *process) await(t *testing.T, ports ...string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for _, port := range ports {
		for {
			c, err := net.Dial("tcp", "127.0.0.1:"+port)
			if err == nil {
				c.Close()
				break
			}
			select {
			case <-tick.C:
			case <-p.ended:
				t.Fatal("the server has ended")
			case <-late:
				t.Fatalf("the server does not listen: %v", err)
			}
		}
	}
}

func libraries(t *testing.T) []string {
	return []string{"LD_LIBRARY_PATH=" + unpacked(t, "usr/lib/x86_64-linux-gnu")}
}

func at(port string) string { return "127.0.0.1:" + port }

func startGo(t *testing.T) []server {
	files := http.FileServer(http.Dir(filepath.Join(documents(t), "www")))
	mux := http.NewServeMux()
	say := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
	}
	mux.Handle("/v1/items/{name}", say(allowed))
	mux.Handle("/v1/items/admin/", say(forbidden))
	mux.Handle("/v1/secrets/", say(forbidden))
	var all []server
	for name, h := range map[string]http.Handler{"files": files, "mux": mux} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: h, ReadHeaderTimeout: patience}
		done := make(chan struct{})
		go func() { s.Serve(l); close(done) }()
		t.Cleanup(func() { s.Close(); <-done })
		all = append(all, server{name: name, address: l.Addr().String(), fooled: 1})
	}
	return all
}

func startPython(t *testing.T) []server {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("there is no python3")
	}
	port := freePorts(t, 1)[0]
	run(t, false, nil, python, "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", filepath.Join(documents(t), "www")).await(t, port)
	return []server{{name: "files", address: at(port), fooled: 1}}
}

// startNginx has files, also without merging slashes, and a proxy before the
// first, which sends on what it has read.
func startNginx(t *testing.T) []server {
	program := unpacked(t, "usr/sbin/nginx")
	dir := documents(t)
	ports := freePorts(t, 3)
	conf := write(t, dir, "nginx.conf", fmt.Sprintf(`
daemon off; master_process off; pid %[1]s/pid; error_log stderr; events {}
http {
  access_log off; root %[1]s/www;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen 127.0.0.1:%[2]s; }
  server { listen 127.0.0.1:%[3]s; merge_slashes off; }
  server { listen 127.0.0.1:%[4]s; location / { proxy_pass http://127.0.0.1:%[2]s/; } }
}`, dir, ports[0], ports[1], ports[2]))
	run(t, false, libraries(t), program, "-p", dir, "-e", "stderr", "-c", conf).await(t, ports...)
	return []server{
		{name: "files", address: at(ports[0]), fooled: 20},
		{name: "files, slashes not merged", address: at(ports[1]), fooled: 20},
		{name: "proxy", address: at(ports[2]), fooled: 20},
	}
}

// startApache decodes escaped slashes, keeps them, and has another host with a
// rewriting that puts paths into paths.
func startApache(t *testing.T) []server {
	program := unpacked(t, "usr/sbin/apache2")
	dir := documents(t)
	ports := freePorts(t, 2)
	var modules strings.Builder
	for _, m := range []string{"mpm_event", "authz_core", "dir", "unixd"} {
		if path := filepath.Join(unpacked(t, "usr/lib/apache2/modules"), "mod_"+m+".so"); exists(path) {
			fmt.Fprintf(&modules, "LoadModule %s_module %s\n", m, path)
		}
	}
	if os.Getuid() == 0 {
		modules.WriteString("User nobody\nGroup nogroup\n")
	}
	conf := write(t, dir, "apache.conf", fmt.Sprintf(`
ServerRoot %[1]s
PidFile %[1]s/pid
DefaultRuntimeDir %[1]s
ServerName a.test
ErrorLog /dev/stderr
%[2]s
DocumentRoot %[1]s/www
Listen 127.0.0.1:%[3]s
Listen 127.0.0.1:%[4]s
<VirtualHost 127.0.0.1:%[3]s>
AllowEncodedSlashes On
</VirtualHost>
<VirtualHost 127.0.0.1:%[4]s>
AllowEncodedSlashes NoDecode
MergeSlashes Off
</VirtualHost>
`, dir, modules.String(), ports[0], ports[1]))
	run(t, false, libraries(t), program, "-X", "-f", conf).await(t, ports...)
	return []server{
		{name: "slashes decoded", address: at(ports[0]), fooled: 20},
		{name: "slashes kept", address: at(ports[1]), fooled: 10},
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func startLighttpd(t *testing.T) []server {
	program := unpacked(t, "usr/sbin/lighttpd")
	dir := documents(t)
	port := freePorts(t, 1)[0]
	conf := write(t, dir, "lighttpd.conf", fmt.Sprintf("server.document-root = %q\nserver.bind = \"127.0.0.1\"\nserver.port = %s\nserver.compat-module-load = \"disable\"\nserver.modules = (\"mod_indexfile\", \"mod_staticfile\")\n",
		filepath.Join(dir, "www"), port))
	run(t, false, libraries(t), program, "-D", "-f", conf, "-m", unpacked(t, "usr/lib/lighttpd")).await(t, port)
	return []server{{name: "files", address: at(port), fooled: 20}}
}

// java is the runtime and the libraries that begin with one of the names.
func java(t *testing.T, libs ...string) (program, classpath string) {
	t.Helper()
	program, err := exec.LookPath("java")
	if err != nil {
		program = unpacked(t, "usr/lib/jvm/java-17-openjdk-amd64/bin/java")
	}
	var jars []string
	for _, lib := range libs {
		found, err := filepath.Glob(filepath.Join(unpacked(t, "usr/share/java"), lib))
		if err != nil || len(found) == 0 {
			t.Skipf("%s is not there; run scripts/servers", lib)
		}
		jars = append(jars, found...)
	}
	return program, strings.Join(jars, ":")
}

// startTomcat is as it comes, and with what it refuses by itself allowed.
func startTomcat(t *testing.T) []server {
	program, classpath := java(t, "tomcat10-*.jar")
	dir := documents(t)
	ports := freePorts(t, 2)
	write(t, dir, "conf/server.xml", fmt.Sprintf(`<Server port="-1"><Service name="Catalina">
<Connector address="127.0.0.1" port="%s"/>
<Connector address="127.0.0.1" port="%s" encodedSolidusHandling="decode" allowBackslash="true" relaxedPathChars="\"/>
<Engine name="Catalina" defaultHost="a.test"><Host name="a.test" appBase="apps"><Context path="" docBase="%s/www"/></Host></Engine>
</Service></Server>`, ports[0], ports[1], dir))
	write(t, dir, "conf/web.xml", `<web-app xmlns="https://jakarta.ee/xml/ns/jakartaee" version="5.0">
<servlet><servlet-name>default</servlet-name><servlet-class>org.apache.catalina.servlets.DefaultServlet</servlet-class></servlet>
<servlet-mapping><servlet-name>default</servlet-name><url-pattern>/</url-pattern></servlet-mapping>
<welcome-file-list><welcome-file>index.html</welcome-file></welcome-file-list></web-app>`)
	run(t, false, nil, program, "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classpath, "-Dcatalina.base="+dir, "-Dcatalina.home="+dir, "-Djava.io.tmpdir="+dir,
		"org.apache.catalina.startup.Bootstrap", "start").await(t, ports...)
	return []server{
		{name: "as it comes", address: at(ports[0]), fooled: 50},
		{name: "lenient", address: at(ports[1]), fooled: 60},
	}
}

func startJetty(t *testing.T) []server {
	program, classpath := java(t, "jetty9-server.jar", "jetty9-servlet.jar", "jetty9-http.jar", "jetty9-io.jar", "jetty9-util.jar", "jetty9-util-ajax.jar", "jetty9-xml.jar",
		"jetty9-security.jar", "servlet-api.jar")
	dir := documents(t)
	port := freePorts(t, 1)[0]
	conf := write(t, dir, "jetty.xml", fmt.Sprintf(`<?xml version="1.0"?>
<!DOCTYPE Configure PUBLIC "-//Jetty//Configure//EN" "http://www.eclipse.org/jetty/configure_9_3.dtd">
<Configure id="Server" class="org.eclipse.jetty.server.Server">
<Call name="addConnector"><Arg><New class="org.eclipse.jetty.server.ServerConnector"><Arg name="server"><Ref refid="Server"/></Arg>
<Set name="host">127.0.0.1</Set><Set name="port">%s</Set></New></Arg></Call>
<Set name="handler"><New class="org.eclipse.jetty.servlet.ServletContextHandler"><Set name="contextPath">/</Set><Set name="resourceBase">%s/www</Set>
<Call name="addServlet"><Arg>org.eclipse.jetty.servlet.DefaultServlet</Arg><Arg>/</Arg></Call></New></Set>
</Configure>`, port, dir))
	run(t, false, nil, program, "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classpath, "org.eclipse.jetty.xml.XmlConfiguration", conf).await(t, port)
	return []server{{name: "files", address: at(port), fooled: 20}}
}

// startExpress has routes, files, and a handler that reads targets as URLs.
func startExpress(t *testing.T) []server {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("there is no node")
	}
	modules := unpacked(t, "npm/node_modules")
	port := run(t, true, []string{"NODE_PATH=" + modules}, node, "testdata/app.js", filepath.Join(documents(t), "www")).line
	return []server{
		{name: "files", address: at(port), fooled: 20},
		{name: "routes", address: at(port), prefix: "/routes", fooled: 2},
	}
}

func startRails(t *testing.T) []server {
	address := rails(t)
	return []server{{name: "routes", address: address, fooled: 3}}
}

func rails(t *testing.T) (address string) {
	t.Helper()
	program := unpacked(t, "usr/bin/ruby3.1")
	var path []string
	for _, pattern := range []string{
		"usr/share/rubygems-integration/all/gems/*/lib", "usr/share/rubygems-integration/all/gems/*/lib/concurrent-ruby", "usr/lib/ruby/vendor_ruby",
		"usr/lib/ruby/3.1.0", "usr/lib/*/ruby/3.1.0", "usr/lib/*/ruby/vendor_ruby/3.1.0",
	} {
		found, err := filepath.Glob(unpacked(t, "") + "/" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		path = append(path, found...)
	}
	port := run(t, true, append(libraries(t), "RUBYLIB="+strings.Join(path, ":")), program, "--disable-gems", "testdata/app.rb").line
	return at(port)
}

// A policy by methods holds where a framework lets requests choose another one,
// but for what is in a body.
func TestMethodsByOtherMeans(t *testing.T) {
	for name, s := range map[string]func(*testing.T) server{
		"rails":   func(t *testing.T) server { return server{address: rails(t)} },
		"express": func(t *testing.T) server { s := startExpress(t)[1]; return s },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s(t)
			e := newEdge(t, s)
			fooled := 0
			for _, header := range []string{"X-HTTP-Method-Override", "x-http-method-override", "X_HTTP_METHOD_OVERRIDE", "X-Http_Method-Override"} {
				request := "POST " + s.prefix + "/v1/items/x HTTP/1.1\r\nHost: a.test\r\n" + header + ": DELETE\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
				if answer, err := direct(t.Context(), s.address, request); err != nil {
					t.Fatal(err)
				} else if strings.Contains(answer, forbidden) {
					fooled++
				}
				if answer, err := e.send(t.Context(), request); err != nil || !strings.Contains(answer, allowed) {
					t.Errorf("%s: %s, %v", header, answer, err)
				}
			}
			if fooled < 2 {
				t.Errorf("%d headers make it a DELETE where nobody decides: the test shows nothing", fooled)
			}
		})
	}
}
