{{- define "braid.name" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name }}{{- else -}}{{ .Release.Name }}-{{ .Chart.Name }}{{- end -}}
{{- end }}

{{- define "braid.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "braid.selector" . }}
{{- end }}

{{- define "braid.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "braid.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "braid.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "braid.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* A pod's annotations: a change of braid.toml or of the chart's Secret restarts it. */}}
{{- define "braid.podAnnotations" -}}
{{- $own := dict "checksum/config" (printf "%s%s" .root.Values.config (toJson .root.Values.secrets) | sha256sum) -}}
{{ mergeOverwrite $own .values.podAnnotations | toYaml }}
{{- end }}

{{/* What is the same in all pods. Takes root, values (of the component) and component. */}}
{{- define "braid.pod" -}}
serviceAccountName: {{ include "braid.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext: {{ toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .values.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints: {{ toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: tmp
    emptyDir:
      sizeLimit: {{ .root.Values.tmp.sizeLimit }}
  - name: home
    persistentVolumeClaim:
      claimName: {{ .root.Values.home.existingClaim | default (printf "%s-home" (include "braid.name" .root)) }}
  - name: config
    configMap:
      name: {{ include "braid.name" .root }}
  {{- range .root.Values.secretFiles }}
  - name: secret-{{ . }}
    secret:
      secretName: {{ . }}
      defaultMode: 0440
  {{- end }}
{{- end }}

{{/* What is the same in all containers. Takes root, values and env (a list of further variables). */}}
{{- define "braid.container" -}}
image: {{ include "braid.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{ toYaml .root.Values.securityContext | nindent 2 }}
resources: {{ toYaml .values.resources | nindent 2 }}
env:
  - {name: HOME, value: /tmp}
  - {name: BRAID_HOME, value: /data}
  - {name: BRAID_CONFIG, value: /etc/braid/braid.toml}
  - {name: BRAID_LOG_FORMAT, value: {{ .root.Values.logFormat }}}
  - {name: BRAID_PREFIX, value: {{ .root.Values.kafka.topicPrefix | quote }}}
  - {name: KAFKA_BOOTSTRAP, value: {{ .root.Values.kafka.bootstrap | quote }}}
  {{- range .env }}
  - {{ toYaml . | nindent 4 | trim }}
  {{- end }}
  {{- range concat .root.Values.env .values.env }}
  - {{ toYaml . | nindent 4 | trim }}
  {{- end }}
{{- if or .root.Values.secrets .root.Values.secretEnv }}
envFrom:
  {{- if .root.Values.secrets }}
  - secretRef: {name: {{ include "braid.name" .root }}}
  {{- end }}
  {{- range .root.Values.secretEnv }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}
{{- end }}

{{- define "braid.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /data}
- {name: config, mountPath: /etc/braid, readOnly: true}
{{- range .Values.secretFiles }}
- {name: secret-{{ . }}, mountPath: /etc/braid-secrets/{{ . }}, readOnly: true}
{{- end }}
{{- end }}
