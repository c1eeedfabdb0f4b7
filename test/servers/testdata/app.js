// What Express makes of paths: routes and files. Usage: node app.js ROOT
const express = require('express')
const app = express()
app.use(require('method-override')())
const deny = (req, res) => res.send('FORBIDDEN')
app.use('/routes/v1/secrets', deny)
app.use('/routes/v1/items/admin', deny)
app.get('/routes/v1/items/:name', (req, res) => res.send(req.params.name === 'admin' ? 'FORBIDDEN' : 'allowed'))
app.delete('/routes/v1/items/:name', (req, res) => res.send('FORBIDDEN'))
app.post('/routes/v1/items/:name', (req, res) => res.send('allowed'))
app.use(express.static(process.argv[2]))
// A plain handler that parses the target as a URL, as much code does.
app.use((req, res) => {
  let path = ''
  try { path = decodeURIComponent(new URL(req.url, 'http://a.test').pathname) } catch (e) {}
  res.send(/^\/v1\/(secrets|items\/admin)(\/|$)/.test(path) ? 'FORBIDDEN' : 'nothing')
})
const server = app.listen(0, '127.0.0.1', () => console.log(server.address().port))
