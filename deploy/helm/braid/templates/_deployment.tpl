{{/* A Deployment without state, and its disruption budget. Takes root, values, component, command and
scaled (whether something else sets the replicas). */}}
{{- define "braid.deployment" -}}
{{- $name := printf "%s-%s" (include "braid.name" .root) .component -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels: {{ include "braid.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  {{- if not .scaled }}
  replicas: {{ .values.replicas }}
  {{- end }}
  selector:
    matchLabels: {{ include "braid.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  strategy:
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  template:
    metadata:
      annotations: {{ include "braid.podAnnotations" . | nindent 8 }}
      labels: {{ include "braid.labels" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
        {{- with .values.podLabels }}{{ toYaml . | nindent 8 }}{{- end }}
    spec: {{ include "braid.pod" . | nindent 6 }}
      containers:
        - name: {{ .component }}
          args: {{ concat (list .command) .values.args | toJson }}
          {{- $env := list
            (dict "name" "BRAID_METRICS__HOST" "value" "0.0.0.0")
            (dict "name" "BRAID_METRICS__PORT" "value" (toString .values.metricsPort)) }}
          {{- include "braid.container" (dict "root" .root "values" .values "env" $env) | nindent 10 }}
          volumeMounts: {{ include "braid.mounts" .root | nindent 12 }}
          ports:
            - {name: metrics, containerPort: {{ .values.metricsPort }}}
          # No liveness probe: a process that waits for Kafka must not be restarted, and one that is
          # stuck ends by itself.
          readinessProbe:
            httpGet: {path: /healthz, port: metrics}
            periodSeconds: 10
            timeoutSeconds: 5
{{- if .values.disruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  labels: {{ include "braid.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  maxUnavailable: {{ .values.disruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{ include "braid.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- end }}
